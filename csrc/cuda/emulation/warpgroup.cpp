#include "cuda/emulation/warpgroup.h"

#include <algorithm>
#include <array>
#include <deque>
#include <map>

#include "cuda/emulation/block.h"
#include "cuda/emulation/matrix.h"

namespace infoslice::emulation {
namespace {

constexpr int kDepth = 16, kColumns = 32;  // of the product; of a thread

/// What a thread reads of the operands: two rows of the left, 32 columns of the right.
struct Operands {
  std::array<std::array<uint16_t, kDepth>, 2> rows;
  std::array<std::array<uint16_t, kDepth>, kColumns> columns;
  bool operator==(const Operands& other) const {
    return rows == other.rows && columns == other.columns;
  }
};

struct Product {
  Place place;
  float* sums;
  uint64_t left, right;
  bool add, left_transposed, right_transposed;
  float (*widen)(uint16_t);
  Operands at_issue;
};

}  // namespace

struct Warpgroup {                               // of one thread
  std::deque<std::vector<Product>> groups{{}};   // the last one is not committed
  std::map<float*, std::array<float, 64>> sums;  // of products under way
  bool fenced = false;
  size_t issued = 0;
};

namespace {

Warpgroup& mine() {
  std::shared_ptr<Warpgroup>& own = this_thread().warpgroup;
  if (own == nullptr) own = std::make_shared<Warpgroup>();
  return *own;
}

uint64_t bits(uint64_t word, int from, int to) {  // [from, to)
  return word >> from & ((uint64_t{1} << (to - from)) - 1);
}

/// Element (i, k) of the operand behind a descriptor, i along M or N.
uint16_t element(Place place, uint64_t descriptor, bool transposed, int i, int k) {
  // Addresses and offsets without their four lowest bits.
  const auto start = static_cast<uint32_t>(bits(descriptor, 0, 14) << 4),
             leading = static_cast<uint32_t>(bits(descriptor, 16, 30) << 4),
             stride = static_cast<uint32_t>(bits(descriptor, 32, 46) << 4);
  if (bits(descriptor, 14, 16) != 0 || bits(descriptor, 30, 32) != 0 ||
      bits(descriptor, 46, 49) != 0 || bits(descriptor, 52, 62) != 0)
    stop_kernel("a matrix descriptor with bits that mean nothing" + at(place));
  if (bits(descriptor, 62, 64) != 1)
    stop_kernel("a matrix descriptor without the 128-byte swizzle: not modelled" + at(place));
  // The pattern repeats every 1024 bytes; a start in another row of it needs the base offset.
  if (bits(descriptor, 49, 52) != (start >> 7 & 7))
    stop_kernel("a matrix descriptor with the wrong base offset" + at(place));
  const auto row = static_cast<uint32_t>(transposed ? k : i),
             column = static_cast<uint32_t>(transposed ? i : k);
  // Rows of 128 bytes, eight of them an atom. K-major: the stride leads to the next eight of M or N;
  // the leading dimension's offset is not used. Otherwise: the stride leads to the next eight of K
  // and the other to the next 64 of M or N.
  uint32_t address = start + row % 8 * 128 + row / 8 * stride;
  address += transposed ? column % 64 * 2 + column / 64 * leading : column * 2;
  address ^= address >> 3 & 0x70;
  uint16_t value;
  std::memcpy(&value, shared_at(address), sizeof(value));
  return value;
}

Operands read(const Product& product) {
  const int thread = this_thread().index % 128, warp = thread / 32, g = lane() / 4, t = lane() % 4;
  Operands operands;
  for (int k = 0; k < kDepth; ++k) {
    for (int r = 0; r < 2; ++r)
      operands.rows[static_cast<size_t>(r)][static_cast<size_t>(k)] =
          element(product.place, product.left, product.left_transposed, 16 * warp + g + 8 * r, k);
    for (int c = 0; c < kColumns; ++c)
      operands.columns[static_cast<size_t>(c)][static_cast<size_t>(k)] = element(
          product.place, product.right, product.right_transposed, c / 2 * 8 + 2 * t + c % 2, k);
  }
  return operands;
}

void finish(const Product& product, std::array<float, 64>& sums) {
  const Operands operands = read(product);
  if (!(operands == product.at_issue))
    stop_kernel("the operands of a wgmma changed while it was under way" + at(product.place));
  const auto widened = [&](const std::array<uint16_t, kDepth>& from) {
    std::array<double, kDepth> to;
    for (size_t k = 0; k < kDepth; ++k) to[k] = static_cast<double>(product.widen(from[k]));
    return to;
  };
  const std::array<double, kDepth> rows[2] = {widened(operands.rows[0]), widened(operands.rows[1])};
  for (size_t c = 0; c < kColumns; ++c) {
    const std::array<double, kDepth> column = widened(operands.columns[c]);
    for (size_t r = 0; r < 2; ++r) {
      float& sum = sums[c / 2 * 4 + 2 * r + c % 2];
      if (!product.add) sum = 0;
      for (size_t k0 = 0; k0 < kDepth; k0 += 8) {  // truncated, as in matrix.h
        double total = static_cast<double>(sum);
        for (size_t k = k0; k < k0 + 8; ++k) total += rows[r][k] * column[k];
        sum = truncated(total);
      }
    }
  }
}

}  // namespace

void warpgroup_fence() { mine().fenced = true; }

void warpgroup_multiply(Place place, float (&sums)[64], uint64_t left, uint64_t right, bool add,
                        bool left_transposed, bool right_transposed, float (*widen)(uint16_t)) {
  const uint64_t flags = static_cast<uint64_t>(add) | static_cast<uint64_t>(left_transposed) << 1 |
                         static_cast<uint64_t>(right_transposed) << 2;
  const uint64_t* all = exchange(Collective::matrix, 0xffffffffu, left, place, right, flags);
  for (int i = 0; i < kWarp; ++i) {
    if (all[i] != left || all[kWarp + i] != right || all[2 * kWarp + i] != flags)
      stop_kernel("a wgmma that differs between lanes" + at(place));
  }
  Warpgroup& own = mine();
  if (!own.fenced) stop_kernel("a wgmma without a fence after the last wait" + at(place));
  // The first warp to come says what the warpgroup does.
  atomically([&] {
    auto& issued = issued_products(this_thread().index / 128);
    const std::array<uint64_t, 3> this_one{left, right, flags};
    if (own.issued == issued.size()) issued.push_back(this_one);
    if (issued[own.issued] != this_one)
      stop_kernel("a wgmma that differs between warps" + at(place));
  });
  ++own.issued;
  if (own.sums.count(sums) == 0) std::copy(sums, sums + 64, own.sums[sums].begin());
  std::memset(sums, 0xff, sizeof(sums));
  Product product{place, sums, left, right, add, left_transposed, right_transposed, widen, {}};
  product.at_issue = read(product);
  own.groups.back().push_back(product);
}

void warpgroup_commit() { mine().groups.emplace_back(); }

void warpgroup_wait(Place place, int groups) {
  Warpgroup& own = mine();
  if (!own.groups.back().empty() && groups == 0)
    stop_kernel("a wait for wgmma that were not committed" + at(place));
  while (static_cast<int>(own.groups.size()) - 1 > groups) {
    for (const Product& product : own.groups.front()) finish(product, own.sums[product.sums]);
    own.groups.pop_front();
  }
  for (auto each = own.sums.begin(); each != own.sums.end();) {
    const bool under_way =
        std::any_of(own.groups.begin(), own.groups.end(), [&](const std::vector<Product>& group) {
          return std::any_of(group.begin(), group.end(),
                             [&](const Product& p) { return p.sums == each->first; });
        });
    if (!under_way) std::copy(each->second.begin(), each->second.end(), each->first);
    each = under_way ? std::next(each) : own.sums.erase(each);
  }
  own.fenced = false;
}

}  // namespace infoslice::emulation

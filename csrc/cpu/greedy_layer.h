// The two matrices of one layer (or of one selection) under elimination, in lock-step.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/downdate.h"
#include "cpu/scores.h"

namespace infoslice::cpu {

/// The first matrix is conditioned on (or forgets) each channel, with rows u of its panel; so is the
/// second in an information, with rows w. In least squares the second is W'W, with terms of both.
class Layer {
 public:
  /// `capacity` rows are collected, and before them in the second matrix `prior` for y.
  Layer(Score score, int64_t slots, int64_t r, int64_t capacity, int64_t prior, bool in_place)
      : first(slots, r, in_place),
        second(score == Score::entropy ? 0 : slots, r, in_place),
        score_(score),
        r_(r),
        capacity_(capacity),
        stride_(padded_stride<double>(round_up(slots, kTile) * r)),
        limit_(rounding_floor(prior + slots * r)),
        u_(capacity, round_up(slots, kTile) * r),
        w_(score == Score::entropy ? 0 : prior + capacity, round_up(slots, kTile) * r),
        rows_(2 * r * stride_),
        factors_(r) {
    first_terms_ = {{&u_, &u_}};
    if (score == Score::information) second_terms_ = {{&w_, &w_}};
    if (score == Score::least_squares) second_terms_ = {{&u_, &w_}, {&w_, &u_}};
  }
  Layer(const Layer&) = delete;

  Downdated first, second;
  std::vector<double> first_variance, second_variance;  // before all eliminations, by column

  int64_t r() const { return r_; }
  bool full() const { return u_filled_ + r_ > capacity_; }

  /// Eliminates variables that are no channels from the second matrix, given `count` rows of its
  /// panel.
  void eliminate_rows(const double* rows, int64_t stride, int64_t count, int64_t tiles) {
    for (int64_t k = 0; k < count; ++k) w_.put(k, rows + k * stride, tiles * kTile * r_);
    subtract_from_diagonal(rows, rows, stride, count, r_, tiles, second.diagonal());
    w_filled_ = count;
  }

  void add_scores(bool drop, int64_t first_tile, int64_t last_tile, double* scores) const {
    const Scoring scoring{score_,
                          drop,
                          r_,
                          limit_,
                          first.diagonal(),
                          second.diagonal(),
                          first_variance.data(),
                          second_variance.data()};
    cpu::add_scores(scoring, first_tile, last_tile, factors_, scores);
  }

  /// Eliminates the channel in `slot`, whose tile was the last to be scored, from the first `tiles`.
  void eliminate(int64_t slot, int64_t tiles) {
    const double* const pivots = factors_.pivots(0) + slot % kTile;
    bool nothing = true;  // of a channel that is redundant there is nothing to eliminate
    for (int64_t a = 0; a < r_; ++a) nothing = nothing && pivots[a * kTile] == 0;
    if (nothing) return;
    const int64_t columns = tiles * kTile * r_;
    double *const p = rows_.get(), *const q = p + r_ * stride_;
    form_rows(first, first_terms_, 0, slot, columns, p);
    put(u_, u_filled_, p, columns);
    subtract_from_diagonal(p, p, stride_, r_, r_, tiles, first.diagonal());
    if (score_ == Score::information) {
      form_rows(second, second_terms_, 1, slot, columns, q);
      subtract_from_diagonal(q, q, stride_, r_, r_, tiles, second.diagonal());
    }
    if (score_ == Score::least_squares) {
      form_rows(second, second_terms_, 0, slot, columns, q);
      symmetrise(slot, columns, q);
      subtract_from_diagonal(p, q, stride_, r_, r_, tiles, second.diagonal());
      subtract_from_diagonal(q, p, stride_, r_, r_, tiles, second.diagonal());
    }
    u_filled_ += r_;
    if (score_ == Score::entropy) return;
    put(w_, w_filled_, q, columns);
    w_filled_ += r_;
  }

  /// Puts a channel into another slot.
  void move(int64_t from, int64_t to, int64_t columns) {
    first.move(from, to, columns, rows_.get(), stride_);
    if (score_ != Score::entropy) second.move(from, to, columns, rows_.get(), stride_);
    for (int64_t a = 0; a < r_; ++a) {
      const int64_t i = place(from, a, r_), j = place(to, a, r_);
      for (std::vector<double>* variance : {&first_variance, &second_variance}) {
        if (!variance->empty())
          (*variance)[static_cast<size_t>(j)] = (*variance)[static_cast<size_t>(i)];
      }
      for (int64_t k = 0; k < u_filled_; ++k) u_.at(k, j) = u_.at(k, i);
      for (int64_t k = 0; k < w_filled_; ++k) w_.at(k, j) = w_.at(k, i);
    }
  }

  /// Brings a band of matrix `which` up to date; rows(which) tells from how many rows.
  void downdate(int which, int64_t band, int64_t columns) const {
    if (which == 0) first.downdate(band, first_terms_, u_filled_, columns);
    if (which == 1) second.downdate(band, second_terms_, w_filled_, columns);
  }
  int64_t rows(int which) const { return which == 0 ? u_filled_ : w_filled_; }
  void empty_panels() { u_filled_ = w_filled_ = 0; }

 private:
  void put(const Panel& panel, int64_t at, const double* rows, int64_t columns) const {
    for (int64_t a = 0; a < r_; ++a) panel.put(at + a, rows + a * stride_, columns);
  }

  /// out = D^-1/2 L^-1 (rows of the channel) with the given factors; a dropped variable gives zeros.
  void form_rows(const Downdated& matrix, const Terms& terms, int factor, int64_t slot,
                 int64_t columns, double* out) const {
    const int64_t filled = &matrix == &first ? u_filled_ : w_filled_;
    matrix.form_rows(slot, terms, filled, columns, out, stride_);
    std::vector<double> scale;
    for (int64_t a = 0; a < r_; ++a) {
      const double pivot = factors_.pivots(factor)[a * kTile + slot % kTile];
      scale.push_back(pivot == 0 ? 0.0 : 1 / std::sqrt(pivot));
    }
    solve_rows(factors_.lower(factor) + slot % kTile, scale.data(), r_, columns, out, stride_);
  }

  /// t -> t - 1/2 K u with K = D^-1/2 L^-1 G_cc L^-T D^-1/2, so that the downdate
  /// u't + t'u - u'K u becomes u't + t'u. The channel's own columns of t are K D^1/2 L'.
  void symmetrise(int64_t slot, int64_t columns, double* t) const {
    const double* const lower = factors_.lower(0) + slot % kTile;
    const double* const pivots = factors_.pivots(0) + slot % kTile;
    const Workspace<double> half = zeros(round_up(r_, kTile) * r_);  // an operand: K is symmetric
    const auto k = [&](int64_t a, int64_t b) -> double& {
      return half.get()[a / kTile * r_ * kTile + b * kTile + a % kTile];
    };
    for (int64_t a = 0; a < r_; ++a) {
      for (int64_t b = 0; b < r_; ++b) {
        double value = 0.5 * t[a * stride_ + place(slot, b, r_)];
        for (int64_t c = 0; c < b; ++c)
          value -= k(a, c) * std::sqrt(pivots[c * kTile]) * lower[packed(b, c) * kTile];
        k(a, b) = value / std::sqrt(pivots[b * kTile]);
      }
    }
    subtract_product(half.get(), r_ * kTile, u_.tile(0) + u_filled_ * kTile, u_.stride(), r_, r_,
                     columns, t, stride_, kTile);
  }

  const Score score_;
  const int64_t r_, capacity_, stride_;
  const double limit_;
  Panel u_, w_;
  Terms first_terms_, second_terms_;
  Workspace<double> rows_;  // of the channel that is being eliminated
  Factors factors_;
  int64_t u_filled_ = 0, w_filled_ = 0;  // rows of the panels
};

}  // namespace infoslice::cpu

//! The k best of a stream of scores: which they are, and how most of the others are passed over.

use burn_core::tensor::Element;

/// A score, and the order of hits: higher scores first, ties by lowest index, NaN last.
pub(crate) trait Score: Element + PartialOrd + Copy {
    /// A score and the index of its item as one integer: the larger, the better.
    type Key: Ord + Copy + Send + Sync;

    const NAN: Self;
    const NEG_INFINITY: Self;

    fn key(self, index: u32) -> Self::Key;
    fn score_of(key: Self::Key) -> Self;
    fn index_of(key: Self::Key) -> u32;

    /// Scales scores to cosines, which lie in [-1, 1]; NaN stays NaN.
    fn to_cosines(scores: &mut [Self], query: Self, items: &[Self]);
}

/// Floats are ordered as the integers of their bits are, once those of negative ones are flipped. NaN comes before -∞, whose
/// flipped bits are not zero; -0 becomes 0, which it ties with. Indices are flipped, so that the lowest is best.
macro_rules! impl_score {
    ($float:ty, $bits:ty, $key:ty) => {
        impl Score for $float {
            type Key = $key;

            const NAN: Self = <$float>::NAN;
            const NEG_INFINITY: Self = <$float>::NEG_INFINITY;

            #[inline(always)]
            fn key(self, index: u32) -> $key {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                let bits = (self + 0.0).to_bits();
                let order = if self.is_nan() {
                    0
                } else if bits & SIGN == 0 {
                    bits | SIGN
                } else {
                    !bits
                };
                <$key>::from(order) << 32 | <$key>::from(!index)
            }

            fn score_of(key: $key) -> Self {
                const SIGN: $bits = 1 << (<$bits>::BITS - 1);
                let order = (key >> 32) as $bits;
                match order {
                    0 => Self::NAN,
                    _ if order & SIGN != 0 => <$float>::from_bits(order & !SIGN),
                    _ => <$float>::from_bits(!order),
                }
            }

            fn index_of(key: $key) -> u32 {
                !(key as u32)
            }

            fn to_cosines(scores: &mut [Self], query: Self, items: &[Self]) {
                pulp::Arch::new().dispatch(
                    #[inline(always)]
                    || {
                        for (score, item) in scores.iter_mut().zip(items) {
                            *score = (*score * query * *item).clamp(-1.0, 1.0);
                        }
                    },
                );
            }
        }
    };
}

impl_score!(f32, u32, u64);
impl_score!(f64, u64, u128);

/// Scores that are compared before any of them is looked at.
const GLANCE: usize = 64;

/// Room beyond k, so that a small k does not select all the time.
const LEAST_ROOM: usize = 32;

/// The k best so far of one query.
pub(crate) struct Best<S: Score> {
    k: usize,
    /// At most the larger of `2k` and `k + 32`: then all but the k best go.
    keys: Vec<S::Key>,
    /// What a score must beat: that of the k-th best when it was last looked for. NaN until there are k.
    threshold: S,
}

impl<S: Score> Best<S> {
    /// For the `k` best, at least one, of at most `count` scores.
    pub fn new(k: usize, count: usize) -> Self {
        let room = k.saturating_mul(2).max(k.saturating_add(LEAST_ROOM)).min(count.max(k) + 1);
        Best { k, keys: Vec::with_capacity(room), threshold: S::NAN }
    }

    /// Takes the scores of the items `first..`, which come after those of all items before.
    pub fn offer(&mut self, scores: &[S], first: u32, excluded: impl Fn(u32) -> bool) {
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                for (i, glance) in scores.chunks(GLANCE).enumerate() {
                    if may_beat(glance, self.threshold) {
                        self.look_at(glance, first + (i * GLANCE) as u32, &excluded);
                    }
                }
            },
        );
    }

    #[inline(never)]
    fn look_at(&mut self, scores: &[S], first: u32, excluded: &impl Fn(u32) -> bool) {
        for (index, &score) in (first..).zip(scores) {
            if may_beat(&[score], self.threshold) && !excluded(index) {
                self.push(score.key(index));
            }
        }
    }

    /// Takes single scores with their items, in any order.
    pub fn offer_each(&mut self, scores: impl IntoIterator<Item = (S, u32)>, excluded: impl Fn(u32) -> bool) {
        for (score, index) in scores {
            if !excluded(index) {
                self.push(score.key(index));
            }
        }
    }

    #[inline(always)]
    fn push(&mut self, key: S::Key) {
        self.keys.push(key);
        if self.keys.len() == self.keys.capacity() {
            self.select();
        }
    }

    /// Drops all but the k best.
    fn select(&mut self) {
        if self.keys.len() >= self.k {
            let (_, worst, _) = self.keys.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
            self.threshold = S::score_of(*worst);
            self.keys.truncate(self.k);
        }
    }

    /// Scores and items, the best first: k of them, unless fewer were offered.
    pub fn into_sorted(mut self) -> impl ExactSizeIterator<Item = (S, u32)> {
        self.select();
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        self.keys.into_iter().map(|key| (S::score_of(key), S::index_of(key)))
    }
}

/// Whether any of the scores may be among the best. A tie is not: its index is higher. NaN may be, and so may any where the threshold is
/// NaN: keys decide then.
#[inline(always)]
fn may_beat<S: Score>(scores: &[S], threshold: S) -> bool {
    // No early end: it would not be compiled to vectors.
    #[allow(clippy::neg_cmp_op_on_partial_ord, reason = "true where either is NaN")]
    scores.iter().fold(false, |any, &score| any | !(score <= threshold))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCORES: [f32; 10] = [0.5, f32::NAN, -0.0, 0.0, f32::INFINITY, -1e-40, 0.5, f32::NEG_INFINITY, 3.0, f32::NAN];
    const ORDER: [u32; 10] = [4, 8, 0, 6, 2, 3, 5, 7, 1, 9];

    fn best(k: usize, scores: &[f32], excluded: &[u32]) -> Vec<u32> {
        let mut best = Best::new(k, scores.len());
        best.offer(scores, 0, |index| excluded.contains(&index));
        best.into_sorted().map(|(_, index)| index).collect()
    }

    #[test]
    fn higher_scores_come_first_ties_by_lowest_index_and_nan_last() {
        for k in 1..=12 {
            assert_eq!(best(k, &SCORES, &[]), ORDER[..k.min(10)], "k = {k}");
        }
    }

    #[test]
    fn an_excluded_item_is_replaced_by_the_next_best() {
        assert_eq!(best(3, &SCORES, &[4, 0]), [8, 6, 2]);
        assert_eq!(best(3, &SCORES, &[0, 1, 2, 3, 4, 5, 6, 7, 9]), [8]);
    }

    #[test]
    fn a_key_holds_score_and_index() {
        for score in SCORES {
            for index in [0, 1, u32::MAX] {
                let key = score.key(index);
                assert_eq!(f32::index_of(key), index);
                assert_eq!((f32::score_of(key) + 0.0).to_bits(), (score + 0.0).to_bits(), "{score}");
                let key = f64::from(score).key(index);
                assert_eq!((f64::score_of(key) + 0.0).to_bits(), (f64::from(score) + 0.0).to_bits(), "{score} in f64");
            }
        }
    }

    #[test]
    fn long_streams_in_the_worst_order_keep_the_best() {
        let ascending: Vec<f32> = (0..10_000).map(|x| x as f32).collect();
        for k in [1, 7, 100, 9_999, 10_000] {
            let expected: Vec<u32> = (0..10_000).rev().take(k).collect();
            assert_eq!(best(k, &ascending, &[]), expected, "k = {k}");
            let equal: Vec<u32> = (0..10_000).take(k).collect();
            assert_eq!(best(k, &[2.5; 10_000], &[]), equal, "all equal, k = {k}");
            assert_eq!(best(k, &[f32::NAN; 10_000], &[]), equal, "all NaN, k = {k}");
        }
    }

    #[test]
    fn cosines_are_clamped_and_nan_stays() {
        let mut scores = [3.0, -3.0, f32::NAN, 0.25];
        f32::to_cosines(&mut scores, 0.5, &[1.0, 1.0, 1.0, 2.0]);
        assert_eq!(scores.map(f32::to_bits), [1.0, -1.0, f32::NAN, 0.25].map(f32::to_bits));
    }
}

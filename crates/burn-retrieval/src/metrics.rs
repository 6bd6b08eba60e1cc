//! Ranking metrics as plain functions over [`Hits`].

#[cfg(feature = "train")]
pub use crate::train::{RankingInput, RankingMetric, RankingOutput};
use crate::{error::RetrievalError, hits::Hits, similarity::read};

/// Which items are relevant to each query, and how much.
///
/// ```
/// use burn_retrieval::metrics::Relevance;
///
/// // Three ways to say that item 4 is relevant to the first query and item 0 to the second.
/// assert_eq!(Relevance::one([4, 0]), Relevance::sets(&[vec![4], vec![0]]));
/// assert_eq!(Relevance::one([4, 0]), Relevance::graded(&[vec![(4, 1.0)], vec![(0, 1.0)]]));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Relevance {
    /// For each query the relevant items and their gains, sorted by item.
    gains: Vec<Vec<(usize, f64)>>,
}

impl Relevance {
    /// One relevant item for each query.
    pub fn one(items: impl IntoIterator<Item = usize>) -> Self {
        Relevance { gains: items.into_iter().map(|item| vec![(item, 1.0)]).collect() }
    }

    /// Any number of relevant items for each query.
    pub fn sets(items: &[Vec<usize>]) -> Self {
        let graded = |items: &Vec<usize>| items.iter().map(|&item| (item, 1.0)).collect();
        Self::graded(&items.iter().map(graded).collect::<Vec<_>>())
    }

    /// Items with gains, of which [`ndcg`] makes use; an item is relevant if its gain is positive. Of several gains of an item the first
    /// counts.
    pub fn graded(items: &[Vec<(usize, f64)>]) -> Self {
        let positive = |items: &Vec<(usize, f64)>| {
            let mut items: Vec<_> = items.iter().copied().filter(|&(_, gain)| gain > 0.0).collect();
            items.sort_by_key(|&(item, _)| item);
            items.dedup_by_key(|&mut (item, _)| item);
            items
        };
        Relevance { gains: items.iter().map(positive).collect() }
    }

    /// How many queries there are.
    pub fn len(&self) -> usize {
        self.gains.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.gains.is_empty()
    }
}

/// A ranking metric of the first `k` hits. `rel(i)` is 1 where the hit of rank `i`, counted from 1, is relevant, else 0; `R` is how many
/// items are relevant to the query.
///
/// ```text
/// Recall            Σᵢ rel(i) / R                        Precision        Σᵢ rel(i) / k
/// HitRate           1 if any is relevant                 ReciprocalRank   1 / rank of the first that is relevant
/// AveragePrecision  Σᵢ rel(i)·Precision@i / R            Ndcg             Σᵢ gain(i) / log₂(i + 1), of the ideal order's
/// ```
///
/// # Numerics
///
/// A query without relevant items scores 0. The order is that of the hits, ties included; a hit of index -1 is none. Precision divides by
/// `k` even where there are fewer hits.
///
/// # Source
///
/// The definitions of trec_eval (`recall`, `P`, `success`, `recip_rank`, `map_cut`, `ndcg_cut`) and ranx, whose answers the tests compare.
///
/// # Differences from Keras RS
///
/// Its nDCG has gains of `2^gain − 1`: hand those over for the same numbers. scikit-learn's averages over the orders of ties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Which part of the relevant items was found.
    Recall,
    /// Which part of what was found is relevant.
    Precision,
    /// Whether anything relevant was found.
    HitRate,
    /// How early the first relevant item was found.
    ReciprocalRank,
    /// Precision at the ranks of the relevant items.
    AveragePrecision,
    /// Gains discounted by rank, relative to the best order.
    Ndcg,
}

impl Metric {
    /// The metric of each query.
    ///
    /// # Errors
    ///
    /// Hits and relevance of a different number of queries; `k` of 0, or more than was searched for; a device that cannot be read.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_retrieval::{Catalogue, Similarity, metrics::{Metric, Relevance}};
    ///
    /// let items = Tensor::<2>::eye(4, &Device::flex());
    /// let hits = Catalogue::new(items.clone(), Similarity::Dot).top_k(items, 2);
    /// let each = Metric::ReciprocalRank.try_per_query(&hits, &Relevance::one([0, 0, 3, 3]), 2);
    /// assert_eq!(each, Ok(vec![1.0, 0.5, 0.0, 1.0]));
    /// ```
    pub fn try_per_query(self, hits: &Hits, relevance: &Relevance, k: usize) -> Result<Vec<f64>, RetrievalError> {
        let [queries, columns] = hits.indices.dims();
        if queries != relevance.len() {
            return Err(RetrievalError::Length { name: "relevant items", given: relevance.len(), expected: queries });
        }
        if k == 0 || k > columns {
            return Err(RetrievalError::Rank { k, columns });
        }
        let indices: Vec<i64> = read(hits.indices.clone())?.iter::<i64>().collect();
        let of_query = |(row, gains): (&[i64], &Vec<(usize, f64)>)| self.of_query(&ranked(&row[..k], gains), gains, k);
        Ok(indices.chunks_exact(columns).zip(&relevance.gains).map(of_query).collect())
    }

    /// The mean over the queries; NaN if there are none.
    ///
    /// # Errors
    ///
    /// As [`try_per_query`](Self::try_per_query).
    pub fn try_mean(self, hits: &Hits, relevance: &Relevance, k: usize) -> Result<f64, RetrievalError> {
        let each = self.try_per_query(hits, relevance, k)?;
        Ok(each.iter().sum::<f64>() / each.len() as f64)
    }

    /// Of the gains of the first k hits, and all gains.
    fn of_query(self, ranked: &[f64], gains: &[(usize, f64)], k: usize) -> f64 {
        if gains.is_empty() {
            return 0.0;
        }
        let relevant = gains.len() as f64;
        let ranks = || ranked.iter().enumerate().filter(|&(_, &gain)| gain > 0.0).map(|(i, _)| (i + 1) as f64);
        let found = ranks().count() as f64;
        match self {
            Metric::Recall => found / relevant,
            Metric::Precision => found / k as f64,
            Metric::HitRate => found.min(1.0),
            Metric::ReciprocalRank => ranks().next().map_or(0.0, f64::recip),
            Metric::AveragePrecision => (1..).zip(ranks()).map(|(found, rank)| f64::from(found) / rank).sum::<f64>() / relevant,
            Metric::Ndcg => {
                let mut ideal: Vec<f64> = gains.iter().map(|&(_, gain)| gain).collect();
                ideal.sort_by(|a, b| b.total_cmp(a));
                ideal.truncate(k);
                discounted(ranked) / discounted(&ideal)
            }
        }
    }
}

/// The gain of each hit.
fn ranked(row: &[i64], gains: &[(usize, f64)]) -> Vec<f64> {
    let gain = |&index: &i64| {
        let index = usize::try_from(index).ok()?;
        let place = gains.binary_search_by_key(&index, |&(item, _)| item).ok()?;
        Some(gains[place].1)
    };
    row.iter().map(|index| gain(index).unwrap_or(0.0)).collect()
}

fn discounted(gains: &[f64]) -> f64 {
    (2..).zip(gains).map(|(rank, gain)| gain / f64::from(rank).log2()).sum()
}

/// The plain functions, one line of formula each.
macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $metric:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// The mean over the queries of [`Metric`]'s definition, at the first `k` hits.
        ///
        /// # Panics
        ///
        /// With the text of the [`RetrievalError`], where [`Metric::try_mean`] returns one.
        #[track_caller]
        pub fn $name(hits: &Hits, relevance: &Relevance, k: usize) -> f64 {
            Metric::$metric.try_mean(hits, relevance, k).unwrap_or_else(|error| panic!("{error}"))
        }
    )*};
}

functions! {
    /// Which part of the relevant items was found: recall@k.
    recall = Recall;
    /// Which part of what was found is relevant: precision@k.
    precision = Precision;
    /// For which part of the queries anything relevant was found: hit rate@k, success@k, or top-k accuracy.
    hit_rate = HitRate;
    /// How early the first relevant item was found: MRR@k.
    mrr = ReciprocalRank;
    /// Precision at the ranks of the relevant items: MAP@k.
    map = AveragePrecision;
    /// Gains discounted by rank, relative to the best order: nDCG@k.
    ndcg = Ndcg;
}

//! [`Pairs`]: what a loss is computed of, and what can be wrong with it.

use burn_core::tensor::{DType, Device, Int, Tensor};

use crate::{error::RetrievalError, similarity::score_dtype};

/// A batch of queries with the candidate that belongs to each, for [`InBatchSoftmax`](crate::InBatchSoftmax).
///
/// # Shapes
///
/// Queries and candidates are `(B, n)`, hard negatives `(H, n)`; ids and sampling probabilities are those of the candidates, then of the
/// hard negatives, `(B + H)`; weights are `(B)`.
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::{InBatchSoftmaxConfig, Pairs};
///
/// let device = Device::flex();
/// let queries = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], &device);
/// let candidates = queries.clone();
/// let loss = InBatchSoftmaxConfig::new().init(&device);
///
/// // The last two candidates are the same item: neither is a negative of the other's query.
/// let ids = Tensor::<1, Int>::from_data([7, 8, 8], &device);
/// let masked = loss.forward_pairs(Pairs::new(queries.clone(), candidates.clone()).with_candidate_ids(ids));
/// assert!(masked.into_scalar::<f32>() < loss.forward(queries, candidates).into_scalar::<f32>());
/// ```
#[derive(Clone, Debug)]
pub struct Pairs {
    pub(super) queries: Tensor<2>,
    pub(super) candidates: Tensor<2>,
    pub(super) hard_negatives: Option<Tensor<2>>,
    pub(super) candidate_ids: Option<Tensor<1, Int>>,
    pub(super) candidate_sampling_probability: Option<Tensor<1>>,
    pub(super) sample_weight: Option<Tensor<1>>,
}

impl Pairs {
    /// Row `i` of the candidates is the positive of query `i`, and a negative of all others.
    pub fn new(queries: Tensor<2>, candidates: Tensor<2>) -> Self {
        Pairs {
            queries,
            candidates,
            hard_negatives: None,
            candidate_ids: None,
            candidate_sampling_probability: None,
            sample_weight: None,
        }
    }

    /// Adds candidates that are negatives of every query.
    pub fn with_hard_negatives(mut self, hard_negatives: Tensor<2>) -> Self {
        self.hard_negatives = Some(hard_negatives);
        self
    }

    /// Masks accidental hits: a candidate with the id of a query's positive is none of its negatives. The positive itself is never masked.
    pub fn with_candidate_ids(mut self, ids: Tensor<1, Int>) -> Self {
        self.candidate_ids = Some(ids);
        self
    }

    /// Corrects for popular candidates, which are negatives more often: the logarithm of each candidate's probability of being in a batch
    /// is subtracted from its scores. Probabilities are positive: 0 gives NaN. They have no influence on the direction from candidates to
    /// queries.
    pub fn with_candidate_sampling_probability(mut self, probability: Tensor<1>) -> Self {
        self.candidate_sampling_probability = Some(probability);
        self
    }

    /// Weighs each pair, by 0 or more. With a mean the sum of the losses is divided by the sum of the weights.
    pub fn with_sample_weight(mut self, weight: Tensor<1>) -> Self {
        self.sample_weight = Some(weight);
        self
    }

    /// The dtype to compute in, or what is wrong.
    pub(super) fn check(&self) -> Result<DType, RetrievalError> {
        const NAME: &str = "InBatchSoftmax";
        let (queries, candidates) = (self.queries.dims(), self.candidates.dims());
        if queries != candidates {
            return Err(RetrievalError::Pairs { queries, candidates });
        }
        let dtype = self.queries.dtype();
        let compute = score_dtype(dtype).ok_or(RetrievalError::DType { name: NAME, dtype })?;
        let device = self.queries.device().inner();
        let same_device = |name: &'static str, other: Device| match other.clone().inner() == device {
            true => Ok(()),
            false => {
                let (first, second) = (format!("queries ({device:?})"), format!("{name} ({other:?})"));
                Err(RetrievalError::Devices { name: NAME, first, second })
            }
        };
        let others = [("candidates", Some(&self.candidates)), ("hard negatives", self.hard_negatives.as_ref())];
        for (name, other) in others.into_iter().filter_map(|(name, other)| Some((name, other?))) {
            if other.dtype() != dtype {
                return Err(RetrievalError::DTypes { name: NAME, queries: dtype, items: name, dtype: other.dtype() });
            }
            if other.dims()[1] != queries[1] {
                return Err(RetrievalError::Columns { name: NAME, queries, items: name, shape: other.dims() });
            }
            same_device(name, other.device())?;
        }
        let all = candidates[0] + self.hard_negatives.as_ref().map_or(0, |rows| rows.dims()[0]);
        let list = |name, [given]: [usize; 1], list_device: Device, expected| {
            if given != expected {
                return Err(RetrievalError::Length { name, given, expected });
            }
            same_device(name, list_device)
        };
        if let Some(ids) = &self.candidate_ids {
            list("candidate ids", ids.dims(), ids.device(), all)?;
        }
        if let Some(probabilities) = &self.candidate_sampling_probability {
            list("sampling probabilities", probabilities.dims(), probabilities.device(), all)?;
        }
        if let Some(weights) = &self.sample_weight {
            list("sample weights", weights.dims(), weights.device(), queries[0])?;
        }
        Ok(compute)
    }
}

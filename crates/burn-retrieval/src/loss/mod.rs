//! [`InBatchSoftmax`] and its configuration.

use core::ops::RangeInclusive;

use burn_core as burn; // The derive macros write paths that begin with `burn`.
use burn_core::config::Config;
use burn_core::module::{Module, Param};
use burn_core::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::{
    error::RetrievalError,
    similarity::{Similarity, unit_rows},
};

#[cfg(feature = "autodiff")]
mod gradient_cache;
mod pairs;
mod softmax;

#[cfg(feature = "autodiff")]
pub use gradient_cache::{Embed, gradient_cache};
pub use pairs::Pairs;

use softmax::{Part, Terms, cross_entropy};

/// What scores are divided by before the softmax.
///
/// ```
/// use burn_retrieval::{InBatchSoftmaxConfig, Temperature};
///
/// let clip = InBatchSoftmaxConfig::new().with_temperature(Temperature::Learned(0.07)).with_symmetric(true);
/// # let _ = clip;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Temperature {
    /// A constant, from 1e-30 to 1e30.
    Fixed(f64),
    /// A parameter that begins here, stored as `ln(1 / temperature)`. The temperature is clamped to 0.01 to 1.
    Learned(f64),
}

/// The bounds of a temperature that is fixed: f32 holds it and its inverse, with room for the gradients of unit vectors.
const FIXED: RangeInclusive<f64> = 1e-30..=1e30;

/// The bounds of `ln(1 / temperature)` where it is learned: factors from 1 to 100, as in CLIP.
const LOGIT_SCALE: [f64; 2] = [0.0, 4.605_170_185_988_092];

/// How the losses of a batch become one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reduction {
    /// The mean, weighted by the sample weights.
    Mean,
    /// The sum.
    Sum,
}

/// Configuration of [`InBatchSoftmax`].
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::{InBatchSoftmaxConfig, Reduction, Similarity, Temperature};
///
/// // As `tfrs.tasks.Retrieval()` has it.
/// let tfrs = InBatchSoftmaxConfig::new()
///     .with_similarity(Similarity::Dot)
///     .with_temperature(Temperature::Fixed(1.0))
///     .with_reduction(Reduction::Sum)
///     .init(&Device::flex());
/// # let _ = tfrs;
/// ```
#[derive(Config, Debug)]
pub struct InBatchSoftmaxConfig {
    /// How queries and candidates are compared.
    #[config(default = "Similarity::Cosine")]
    pub similarity: Similarity,
    /// What scores are divided by.
    #[config(default = "Temperature::Fixed(0.05)")]
    pub temperature: Temperature,
    /// Whether each candidate is also to find its query among all, as in CLIP; the loss is the mean of both directions.
    #[config(default = "false")]
    pub symmetric: bool,
    /// How the losses of a batch become one number.
    #[config(default = "Reduction::Mean")]
    pub reduction: Reduction,
    /// How many rows of scores exist at a time; all by default.
    pub chunk: Option<usize>,
}

impl InBatchSoftmaxConfig {
    /// Makes the loss; a learned temperature is a parameter on `device`.
    ///
    /// # Panics
    ///
    /// With the text of the [`RetrievalError`], where [`try_init`](Self::try_init) returns one.
    #[track_caller]
    pub fn init(&self, device: &Device) -> InBatchSoftmax {
        self.try_init(device).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes the loss; a learned temperature is a parameter on `device`.
    ///
    /// # Errors
    ///
    /// A fixed temperature outside of 1e-30 to 1e30, a learned one outside of 0.01 to 1; a chunk of no rows.
    pub fn try_init(&self, device: &Device) -> Result<InBatchSoftmax, RetrievalError> {
        let (temperature, valid, range) = match self.temperature {
            Temperature::Fixed(t) => (t, FIXED.contains(&t), "from 1e-30 to 1e30"),
            Temperature::Learned(t) => (t, (0.01..=1.0).contains(&t), "from 0.01 to 1, where a learned one is kept"),
        };
        if !valid {
            return Err(RetrievalError::Temperature { temperature, range });
        }
        if self.chunk == Some(0) {
            return Err(RetrievalError::EmptyChunk { name: "InBatchSoftmax" });
        }
        let logit_scale = matches!(self.temperature, Temperature::Learned(_))
            .then(|| Param::from_tensor(Tensor::from_data([-temperature.ln()], device)));
        Ok(InBatchSoftmax { logit_scale, config: self.clone() })
    }
}

/// The in-batch softmax loss: each query is to find its own candidate among those of the whole batch. Known as InfoNCE, NT-Xent,
/// MultipleNegativesRankingLoss, and, symmetric, as the loss of CLIP.
///
/// ```text
/// sᵢⱼ = score(qᵢ, cⱼ) / temperature − ln(sampling probability of cⱼ)
/// ℓᵢ  = −ln( exp(sᵢᵢ) / Σⱼ exp(sᵢⱼ) )            j: all candidates and hard negatives, without accidental hits
/// loss = Σᵢ wᵢ ℓᵢ / Σᵢ wᵢ                         or the sum alone
/// ```
///
/// # Shapes
///
/// Queries and candidates `(B, n)` → `[1]`. See [`Pairs`] for hard negatives, ids, sampling probabilities and weights. An empty batch gives 0.
///
/// # Numerics
///
/// f16 and bf16 are computed in f32, in which the loss then is. Scores are taken relative to the largest of their row, and the positive is
/// kept apart from the sum, so that small losses keep their digits, and no temperature overflows with cosines, which are those of
/// [`Similarity::Cosine`]. Dot products, divided by the temperature, must be within the dtype's range; gradients saturate. The scores are
/// `B × (B + H)`, their mask and their exponentials too; nothing else is of that size, and with
/// [`chunk`](InBatchSoftmaxConfig::with_chunk) they exist for that many rows at a time.
///
/// # Gradient
///
/// In closed form, together with the loss: `softmax − one-hot`, times the weights, by the products of [`Dot`](burn_dot::Dot). Gradients
/// reach queries, candidates, hard negatives and a learned temperature; ids, probabilities and weights are constants. A learned temperature
/// beyond its bounds is used as if it were on them, and its gradient is zero where it points further out.
///
/// # Errors
///
/// [`try_forward_pairs`](Self::try_forward_pairs) returns a [`RetrievalError`]; [`forward`](Self::forward) and
/// [`forward_pairs`](Self::forward_pairs) panic with its text.
///
/// # Source
///
/// van den Oord et al. (2018); `tasks.Retrieval` of TensorFlow Recommenders; `MultipleNegativesRankingLoss` and
/// `MultipleNegativesSymmetricRankingLoss` of sentence-transformers; Yi et al. (2019) for the sampling probabilities; Radford et al. (2021)
/// for the learned temperature.
///
/// # Differences from TensorFlow Recommenders
///
/// The defaults are those of sentence-transformers: cosine, temperature 0.05 and a mean, for dot product, 1 and a sum. `num_hard_negatives`
/// there keeps the hardest of the batch; here hard negatives are further candidates. Masked scores are -∞, not a large number.
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::InBatchSoftmaxConfig;
///
/// let device = Device::flex().autodiff();
/// let loss = InBatchSoftmaxConfig::new().init(&device);
/// let queries = Tensor::<2>::from_data([[1.0, 0.1], [0.2, 1.0]], &device).require_grad();
/// let candidates = Tensor::<2>::from_data([[2.0, 0.0], [0.0, 3.0]], &device);
///
/// let value = loss.forward(queries.clone(), candidates);
/// let grads = value.backward();
/// assert!(value.into_scalar::<f32>() < 1e-5); // both found their own
/// assert_eq!(queries.grad(&grads).unwrap().dims(), [2, 2]);
/// ```
#[derive(Module, Debug)]
pub struct InBatchSoftmax {
    /// `ln(1 / temperature)`, where it is learned.
    pub logit_scale: Option<Param<Tensor<1>>>,
    #[module(skip)]
    config: InBatchSoftmaxConfig,
}

impl InBatchSoftmax {
    /// The loss of queries and their candidates, `(B, n)` each → `[1]`.
    ///
    /// # Panics
    ///
    /// With the text of the [`RetrievalError`], where [`try_forward_pairs`](Self::try_forward_pairs) returns one.
    #[track_caller]
    pub fn forward(&self, queries: Tensor<2>, candidates: Tensor<2>) -> Tensor<1> {
        self.forward_pairs(Pairs::new(queries, candidates))
    }

    /// The loss of a batch with hard negatives, ids, sampling probabilities or weights.
    ///
    /// # Panics
    ///
    /// With the text of the [`RetrievalError`], where [`try_forward_pairs`](Self::try_forward_pairs) returns one.
    #[track_caller]
    pub fn forward_pairs(&self, pairs: Pairs) -> Tensor<1> {
        self.try_forward_pairs(pairs).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The loss of a batch with hard negatives, ids, sampling probabilities or weights.
    ///
    /// # Errors
    ///
    /// Shapes, dtypes or devices that do not fit; lists of another length than the batch; a device that `burn-dot` was built without.
    pub fn try_forward_pairs(&self, pairs: Pairs) -> Result<Tensor<1>, RetrievalError> {
        let dtype = pairs.check()?;
        let [batch, _] = pairs.queries.dims();
        if batch == 0 {
            let sum = |rows: Tensor<2>| rows.cast(dtype).sum();
            return Ok(sum(pairs.queries) + sum(pairs.candidates));
        }
        let prepare = |rows: Tensor<2>| match self.config.similarity {
            Similarity::Dot => Ok(rows.cast(dtype)),
            Similarity::Cosine => unit_rows(rows.cast(dtype), dtype),
        };
        let queries = prepare(pairs.queries.clone())?;
        let candidates = [Some(pairs.candidates.clone()), pairs.hard_negatives.clone()].into_iter().flatten().collect();
        let candidates = prepare(Tensor::cat(candidates, 0))?;
        let log_scale = self.logit_scale.as_ref().map(|scale| scale.val().cast(dtype));
        let tracked = queries.is_autodiff() || candidates.is_autodiff() || log_scale.as_ref().is_some_and(Tensor::is_autodiff);

        let terms = terms(&pairs, dtype);
        let value = self.value(queries.clone().inner(), candidates.clone().inner(), log_scale.clone(), &terms, tracked)?;
        let Some([grad_queries, grad_candidates]) = value.grads else { return Ok(value.loss) };
        let of_scale = log_scale.map(|scale| {
            let grad = (queries.clone().inner() * grad_queries.clone()).sum();
            let grad = inward(scale.clone().inner(), grad);
            zero_with_gradient(scale, grad)
        });
        let of_rows = zero_with_gradient(queries, grad_queries) + zero_with_gradient(candidates, grad_candidates);
        Ok(match of_scale {
            Some(of_scale) => value.loss + of_rows + of_scale,
            None => value.loss + of_rows,
        })
    }

    /// The loss of vectors that are ready to be multiplied, and its gradients if they are asked for.
    fn value(
        &self,
        queries: Tensor<2>,
        candidates: Tensor<2>,
        log_scale: Option<Tensor<1>>,
        terms: &Terms,
        with_grads: bool,
    ) -> Result<Value, RetrievalError> {
        let [batch, _] = queries.dims();
        let chunk = self.config.chunk.unwrap_or(batch);
        let scale = match (log_scale, self.config.temperature) {
            (Some(scale), _) => scale.inner().clamp(LOGIT_SCALE[0], LOGIT_SCALE[1]).exp(),
            (None, Temperature::Fixed(t) | Temperature::Learned(t)) => {
                Tensor::from_data([1.0 / t], (&queries.device(), queries.dtype()))
            }
        }
        .unsqueeze::<2>();
        let weight = match self.config.reduction {
            Reduction::Sum => Tensor::ones([1], (&queries.device(), queries.dtype())),
            // Weights of zero alone give zero, not NaN.
            Reduction::Mean => terms.weights.clone().sum().clamp_min(f64::from(f32::MIN_POSITIVE)).recip(),
        } * if self.config.symmetric { 0.5 } else { 1.0 };

        let Part { mut loss, mut grads } =
            cross_entropy(queries.clone() * scale.clone(), candidates.clone(), terms, chunk, with_grads)?;
        grads = grads.map(|(scaled, candidates)| (scaled * scale.clone(), candidates));
        if self.config.symmetric {
            let positives = candidates.slice(0..batch);
            let ids = terms.ids.clone().map(|ids| ids.slice(0..batch));
            let terms = Terms { log_q: None, ids, weights: terms.weights.clone() };
            let other = cross_entropy(positives * scale.clone(), queries, &terms, chunk, with_grads)?;
            loss = loss + other.loss;
            grads = grads.zip(other.grads).map(|((queries, candidates), (scaled, more_queries))| {
                let positives = candidates.clone().slice(0..batch) + scaled * scale;
                (queries + more_queries, candidates.slice_assign(0..batch, positives))
            });
        }
        let each = weight.clone().unsqueeze::<2>();
        let grads = grads.map(|(queries, candidates)| [queries * each.clone(), candidates * each]);
        Ok(Value { loss: loss * weight, grads })
    }
}

/// Zero, whose gradient with respect to `x` is `grad`, or the largest number where that is infinite: zero times infinity is NaN. `grad` is a
/// plain tensor, a constant under any checkpointing strategy.
fn zero_with_gradient<const D: usize>(x: Tensor<D>, grad: Tensor<D>) -> Tensor<1> {
    let largest = grad.dtype().finfo().expect("a float").max;
    ((x.clone() - x.detach()) * grad.clamp(-largest, largest)).sum()
}

/// A loss, and its gradients with respect to queries and candidates.
struct Value {
    loss: Tensor<1>,
    grads: Option<[Tensor<2>; 2]>,
}

/// Constants of a batch, without autodiff.
fn terms(pairs: &Pairs, dtype: DType) -> Terms {
    let [batch, _] = pairs.queries.dims();
    let log_q = pairs.candidate_sampling_probability.clone();
    let ones = || Tensor::ones([batch], (&pairs.queries.device().inner(), dtype));
    Terms {
        log_q: log_q.map(|probability| probability.inner().cast(dtype).log().unsqueeze()),
        ids: pairs.candidate_ids.clone().map(Tensor::inner),
        weights: pairs.sample_weight.clone().map_or_else(ones, |weight| weight.inner().cast(dtype)).unsqueeze_dim(1),
    }
}

/// The gradient of a parameter that is kept within [`LOGIT_SCALE`]: zero at a bound, where a step would lead further out.
fn inward(parameter: Tensor<1>, grad: Tensor<1>) -> Tensor<1> {
    let [least, most] = LOGIT_SCALE;
    let above = parameter.clone().greater_equal_elem(most).bool_and(grad.clone().lower_elem(0.0));
    let below = parameter.lower_equal_elem(least).bool_and(grad.clone().greater_elem(0.0));
    grad.mask_fill(above.bool_or(below), 0.0)
}

//! [`Similarity`], and vectors made ready for it.

use burn_core::tensor::{DType, Tensor, TensorData, kind::Basic};
use burn_dot::{Dot, DotConfig};
use serde::{Deserialize, Serialize};

use crate::error::RetrievalError;

/// How a query and an item are compared.
///
/// ```text
/// Dot:     score = q · x
/// Cosine:  score = q · x / (max(‖q‖, 1e-6) · max(‖x‖, 1e-6))
/// ```
///
/// # Numerics
///
/// f16 and bf16 are multiplied and accumulated in f32, which the scores then have. Cosines lie in [-1, 1], norms neither overflow nor
/// underflow, and a vector with an infinite or NaN entry gives NaN.
///
/// ```
/// use burn_retrieval::Similarity;
///
/// assert_eq!(Similarity::default(), Similarity::Cosine);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Similarity {
    /// The dot product.
    Dot,
    /// The dot product of normalized vectors.
    #[default]
    Cosine,
}

/// Every row with every row.
pub(crate) fn all_pairs(dtype: DType) -> Dot {
    DotConfig::new(1).with_batch_dims(0).with_output_dtype(dtype).init()
}

/// Every row with the one of the same index.
pub(crate) fn row_by_row(dtype: DType) -> Dot {
    DotConfig::new(1).with_output_dtype(dtype).init()
}

/// The dtype that products of a dtype are accumulated in, and that scores have; `None` if it is not one of floats.
pub(crate) fn score_dtype(dtype: DType) -> Option<DType> {
    match dtype {
        DType::F64 => Some(DType::F64),
        DType::F32 | DType::F16 | DType::BF16 => Some(DType::F32),
        _ => None,
    }
}

/// Vectors, and what their scores are multiplied by to be cosines.
pub(crate) struct Vectors {
    pub rows: Tensor<2>,
    /// One for each row, in the dtype of the scores; none where scores are dot products.
    pub factors: Option<TensorData>,
}

impl Vectors {
    /// Reads the rows once, for their norms. Where a square overflows, all are divided by their norms beforehand.
    pub fn new(rows: Tensor<2>, similarity: Similarity, dtype: DType) -> Result<Self, RetrievalError> {
        if similarity == Similarity::Dot {
            return Ok(Vectors { rows, factors: None });
        }
        let squares: Tensor<2> = row_by_row(dtype).try_forward(rows.clone(), rows.clone())?;
        let squares: Vec<f64> = read(squares)?.iter::<f64>().collect();
        // An infinite entry is not meant: it gives NaN by either way.
        let overflow = squares.contains(&f64::INFINITY) && {
            let largest = read(rows.clone().max_abs_dim(1))?;
            squares.iter().zip(largest.iter::<f64>()).any(|(&square, largest)| square == f64::INFINITY && largest.is_finite())
        };
        let factor = |square: f64| if overflow { 1.0 } else { 1.0 / at_least_epsilon(square.sqrt()) };
        let factors = TensorData::from(&squares.into_iter().map(factor).collect::<Vec<f64>>()[..]).convert_dtype(dtype);
        let rows = if overflow { unit_rows(rows.clone().cast(dtype), dtype)?.cast(rows.dtype()) } else { rows };
        Ok(Vectors { rows, factors: Some(factors) })
    }
}

/// NaN stays NaN.
fn at_least_epsilon(norm: f64) -> f64 {
    if norm < DotConfig::DEFAULT_EPSILON { DotConfig::DEFAULT_EPSILON } else { norm }
}

/// Each row divided by `max(‖row‖, 1e-6)`, with its gradient. The norm neither overflows nor underflows, as rows are first divided by
/// their largest entry; a row of zeros stays one, and its gradient is finite.
pub(crate) fn unit_rows(rows: Tensor<2>, dtype: DType) -> Result<Tensor<2>, RetrievalError> {
    let tiny = dtype.finfo().map_or(f64::MIN_POSITIVE, |info| info.min_positive);
    // A constant, as the quotient does not depend on it.
    let largest = rows.clone().detach().max_abs_dim(1).clamp_min(tiny);
    let scaled = rows / largest.clone();
    let squares: Tensor<2> = row_by_row(dtype).try_forward(scaled.clone(), scaled.clone())?;
    // At least 1 but for a row of zeros, where the slope of the root would be infinite.
    let norms = squares.clamp_min(0.25).sqrt();
    Ok(scaled / norms.max_pair(largest.recip() * DotConfig::DEFAULT_EPSILON))
}

/// Reads a tensor, or says why it cannot be read.
pub(crate) fn read<K: Basic>(tensor: Tensor<2, K>) -> Result<TensorData, RetrievalError> {
    tensor.try_into_data().map_err(|error| RetrievalError::Read { reason: error.to_string() })
}

//! [`Hits`].

use burn_core::tensor::{Int, Tensor};

/// The best items of each query, the best first.
///
/// # Shapes
///
/// Both are `(queries, min(k, items))`. A query that has fewer items left, as others were excluded, ends with index -1 and score -∞.
///
/// # Numerics
///
/// Higher scores come first, ties by lowest index, NaN last. Scores are f64 where the queries are, else f32. Indices have the default
/// dtype of integers of the device.
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::{Catalogue, Similarity};
///
/// let device = Device::flex();
/// let items = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]], &device);
/// let hits = Catalogue::new(items.clone(), Similarity::Dot).top_k(items, 2);
/// assert_eq!(hits.indices.into_data().iter::<i64>().collect::<Vec<_>>(), [2, 0, 2, 1, 2, 1]);
/// assert_eq!(hits.scores.into_data().iter::<f32>().collect::<Vec<_>>(), [3.0, 1.0, 8.0, 4.0, 25.0, 8.0]);
/// ```
#[derive(Clone, Debug)]
pub struct Hits {
    /// The scores, `(queries, k)`.
    pub scores: Tensor<2>,
    /// The rows of the items among all items, `(queries, k)`.
    pub indices: Tensor<2, Int>,
}

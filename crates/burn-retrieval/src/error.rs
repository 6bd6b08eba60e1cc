//! [`RetrievalError`]: everything that can be wrong with an input, with the whole message.

use burn_core::tensor::DType;
use burn_dot::DotError;

/// What was wrong with the inputs of a [`Catalogue`](crate::Catalogue), a loss or a metric.
///
/// The text names the inputs, their sizes, and a fix where one exists.
///
/// ```
/// use burn::prelude::*;
/// use burn_retrieval::{Catalogue, Similarity};
///
/// let device = Device::flex();
/// let catalogue = Catalogue::new(Tensor::<2>::ones([5, 4], &device), Similarity::Dot);
/// let error = catalogue.search(2).try_run(Tensor::<2>::ones([1, 3], &device)).unwrap_err();
/// assert_eq!(error.to_string(), "Catalogue: queries have 3 columns but items have 4; queries [1, 3], items [5, 4]");
/// ```
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RetrievalError {
    /// Queries and items are vectors of different lengths.
    #[error("{name}: queries have {} columns but {items} have {}; queries {queries:?}, {items} {shape:?}", .queries[1], .shape[1])]
    Columns {
        /// The type that reports the error.
        name: &'static str,
        /// Shape of the queries.
        queries: [usize; 2],
        /// What the others are.
        items: &'static str,
        /// Shape of the others.
        shape: [usize; 2],
    },
    /// Queries and items have different dtypes.
    #[error("{name}: queries are {queries:?} but {items} are {dtype:?}; cast one of them")]
    DTypes {
        /// The type that reports the error.
        name: &'static str,
        /// The dtype of the queries.
        queries: DType,
        /// What the others are.
        items: &'static str,
        /// The dtype of the others.
        dtype: DType,
    },
    /// Scores of this dtype cannot be ranked.
    #[error("{name}: {dtype:?} is not f64, f32, f16 or bf16; cast it to one of them")]
    DType {
        /// The type that reports the error.
        name: &'static str,
        /// The dtype.
        dtype: DType,
    },
    /// Two tensors are on different devices.
    #[error("{name}: {first} and {second} are on different devices; move one of them with to_device")]
    Devices {
        /// The type that reports the error.
        name: &'static str,
        /// A tensor and its device.
        first: String,
        /// Another tensor and its device.
        second: String,
    },
    /// Indices are 31 bits wide.
    #[error("Catalogue: {items} items are more than 2147483647; make several catalogues")]
    TooManyItems {
        /// How many items there are.
        items: usize,
    },
    /// There must be one list of excluded items for each query.
    #[error("Catalogue: {lists} lists of excluded items for {queries} queries; give one list, maybe empty, for each query")]
    ExclusionLists {
        /// How many lists there are.
        lists: usize,
        /// How many queries there are.
        queries: usize,
    },
    /// An excluded item does not exist.
    #[error("Catalogue: item {item} cannot be excluded, as there are {items}; they are counted from 0")]
    ExcludedItem {
        /// The index of the item.
        item: usize,
        /// How many items there are.
        items: usize,
    },
    /// A chunk must hold something.
    #[error("{name}: a chunk of 0 rows holds nothing; give 1 or more")]
    EmptyChunk {
        /// The type that reports the error.
        name: &'static str,
    },
    /// Queries and candidates do not come in pairs.
    #[error(
        "InBatchSoftmax: queries {queries:?} and candidates {candidates:?} must have the same shape; further candidates go to with_hard_negatives"
    )]
    Pairs {
        /// Shape of the queries.
        queries: [usize; 2],
        /// Shape of the candidates.
        candidates: [usize; 2],
    },
    /// A list has another length than what it is about.
    #[error("{name}: there are {given}, but must be {expected}, one for each")]
    Length {
        /// What is listed.
        name: &'static str,
        /// How many there are.
        given: usize,
        /// How many there must be.
        expected: usize,
    },
    /// A temperature is out of range.
    #[error("InBatchSoftmax: a temperature of {temperature:?} is not {range}")]
    Temperature {
        /// The temperature.
        temperature: f64,
        /// Where it must be.
        range: &'static str,
    },
    /// A metric looks at hits that were not searched for.
    #[error(
        "metric: k is {k}, but there are {columns} hits for each query; give 1 to {columns}, or search for more, if the catalogue has more"
    )]
    Rank {
        /// How many hits the metric is to look at.
        k: usize,
        /// How many there are.
        columns: usize,
    },
    /// The device could not be read.
    #[error("the device could not be read: {reason}")]
    Read {
        /// Why, in Burn's words.
        reason: String,
    },
    /// What [`Dot`](burn_dot::Dot) said of the scores.
    #[error(transparent)]
    Scores(#[from] DotError),
}

#![cfg_attr(docsrs, feature(doc_cfg))]
#![doc = include_str!("../README.md")]
//!
//! # Module map
//!
//! | module | role |
//! |---|---|
//! | `catalogue` | [`Catalogue`], [`Search`]: what a user touches; checks the inputs |
//! | `scan` | chunks of scores, and where the best of each are picked |
//! | `best` | the k best of a stream of scores: order, ties, NaN |
//! | `similarity` | [`Similarity`], and the norms of cosines |
//! | `hits` | [`Hits`] |
//! | `loss` | [`InBatchSoftmax`], its inputs, gradients in closed form, [`gradient_cache`] |
//! | [`metrics`] | recall, precision, hit rate, MRR, MAP, nDCG |
//! | `train` | the same for `burn-train`: `metrics::RankingMetric`, by the feature `train` |
//! | `error` | [`RetrievalError`] |

mod best;
mod catalogue;
mod error;
mod hits;
mod loss;
pub mod metrics;
mod scan;
mod similarity;
#[cfg(feature = "train")]
mod train;

pub use catalogue::{Catalogue, Search};
pub use error::RetrievalError;
pub use hits::Hits;
#[cfg(feature = "autodiff")]
pub use loss::{Embed, gradient_cache};
pub use loss::{InBatchSoftmax, InBatchSoftmaxConfig, Pairs, Reduction, Temperature};
pub use similarity::Similarity;

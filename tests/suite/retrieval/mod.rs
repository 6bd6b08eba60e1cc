//! What `burn-retrieval` promises.

#[cfg(feature = "hnsw")]
mod approximate;
mod losses;
mod metrics;
mod reference;
mod top_k;
mod top_k_errors;
#[cfg(feature = "train")]
mod train;

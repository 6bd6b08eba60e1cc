//! What `burn-retrieval` promises.

mod losses;
mod metrics;
mod reference;
mod top_k;
mod top_k_errors;

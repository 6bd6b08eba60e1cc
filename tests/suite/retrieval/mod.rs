//! What `burn-retrieval` promises.

mod reference;
mod top_k;
mod top_k_errors;

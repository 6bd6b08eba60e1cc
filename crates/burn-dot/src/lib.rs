#![cfg_attr(not(feature = "std"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// burn-ndarray and burn-tch are deprecated upstream in favour of burn-flex, and still supported here.
#![cfg_attr(any(feature = "ndarray", feature = "tch"), allow(deprecated))]
#![doc = include_str!("../README.md")]
//!
//! # Module map
//!
//! One direction of dependency, `dot → ops → reference, layout, path → plan → axes, error`. `backward`, `cpu`, `gpu` and `remote` implement
//! the trait of `ops` for a backend each; a product reaches them by Burn's dispatch only:
//!
//! | module | role |
//! |---|---|
//! | `config`, `dot` | [`DotConfig`], [`Dot`], [`dot()`]: what a user touches; checks the inputs |
//! | `keras` | [`KerasLayer`] and the dictionaries of `get_config()`; [`dots_of`] a model |
//! | `backward` | the derivation of the gradient, and the product as one operation of `Autodiff<B, C>` |
//! | `ops` | the backend-extension trait and the one list of backends |
//! | `cpu` | kernels for flex, forward and backward |
//! | `gpu` | kernels for CubeCL's devices (wgpu, cuda, …), with fusion and without |
//! | `remote` | products on remote devices, computed by their servers: the client, and the server |
//! | `reference` | the product and its gradient composed from Burn's operations, for every backend |
//! | `layout` | the axes of a plan with the strides of each tensor |
//! | `path` | which kernel a product takes |
//! | `plan` | axes and shapes → batch, m, k, n: a pure value |
//! | `axes` | [`Axes`]: what is contracted, as a user writes it |
//! | `error` | [`DotError`] |
//!
//! A product on flex goes `Dot::forward` → `plan` (what meets what) → `backward` (keeps inputs and norms, if tracked) → `ops` → `cpu`.

extern crate alloc;

mod axes;
#[cfg(feature = "autodiff")]
mod backward;
mod config;
#[cfg(feature = "flex")]
mod cpu;
mod dot;
mod error;
#[cfg(feature = "_cube")]
mod gpu;
mod keras;
#[cfg(any(feature = "flex", feature = "_cube"))]
#[cfg_attr(not(feature = "flex"), allow(dead_code, reason = "the kernels for GPUs iterate on the device"))]
mod layout;
// All that is unused then hangs on the trait in here.
#[cfg_attr(not(feature = "autodiff"), allow(dead_code, reason = "only a backward pass asks for gradients"))]
mod ops;
#[cfg_attr(not(any(feature = "flex", feature = "_cube")), allow(dead_code, reason = "only kernels are chosen"))]
mod path;
mod plan;
mod reference;
#[cfg(feature = "remote")]
mod remote;

pub use axes::{Axes, AxisIndex};
pub use config::DotConfig;
pub use dot::{Dot, dot};
pub use error::{Axis, DotError, Operand, Shapes};
/// For tests.
#[cfg(feature = "_cube")]
#[doc(hidden)]
pub use gpu::{Reduction, force_reduction};
pub use keras::{KerasLayer, dots_of};
#[cfg(feature = "server")]
pub use remote::serve;
#[cfg(feature = "remote")]
pub use remote::{ServerError, use_server_kernels};

/// For burn-retrieval: a tensor that will be read many times, where that is sooner. On flex under Linux what is large is copied to huge pages.
#[doc(hidden)]
pub fn in_huge_pages<const D: usize>(x: burn_core::tensor::Tensor<D>) -> burn_core::tensor::Tensor<D> {
    use ops::DotOps;
    if ops::missing_feature(&x.device()).is_some() {
        return x;
    }
    burn_core::tensor::Tensor::from_dispatch(burn_core::backend::Dispatch::float_in_huge_pages(x.into_dispatch()))
}

/// For burn-retrieval: whether tensors of a device are in the host's memory.
#[doc(hidden)]
pub fn is_in_host_memory(device: &burn_core::tensor::Device) -> bool {
    use burn_core::backend::DispatchDeviceId::{Flex, NdArray};
    matches!(ops::backend_of(device), Some(Flex | NdArray))
}

/// For burn-retrieval: calls `f` once for each of `0..tasks`, which together are work like so many multiplications. Threads share them as
/// they share a product: the caller's does tasks, others help if they come in time. Without the feature `flex` the caller's does all.
///
/// # Panics
///
/// If `f` panics, on whichever thread.
#[doc(hidden)]
pub fn for_each_task(tasks: usize, work: usize, f: impl Fn(usize) + Send + Sync) {
    #[cfg(feature = "flex")]
    cpu::for_each_task(tasks, work, f);
    #[cfg(not(feature = "flex"))]
    {
        let _ = work;
        (0..tasks).for_each(f);
    }
}

/// Gives memory that is cached for results on flex back to the allocator: at most 192 MiB of results that were freed.
///
/// They are cached because new memory costs more than many products: the next result of the same size takes a freed one. Without the
/// features `flex` and `std` nothing is cached.
///
/// ```
/// burn_dot::release_memory();
/// ```
pub fn release_memory() {
    #[cfg(feature = "flex")]
    cpu::release_memory();
}

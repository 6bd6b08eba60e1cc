//! What `burn-dot` promises, as tests. One binary, so that Burn is linked once.
//!
//! The device comes from `BURN_DEVICE` (`flex` by default; `ndarray`, `wgpu`, `cuda`, `remote`, … when the feature of that name is on).
//! A device that is asked for and missing is a failure.

mod alone;
mod arrive;
mod beyond_keras;
mod cases;
mod compare_devices;
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu"))]
mod costs;
mod cubecl;
mod device;
mod errors;
mod from_keras;
mod fuzz;
mod gradcheck_burn;
mod gradcheck_compared;
mod gradcheck_custom;
mod gradcheck_faults;
mod gradcheck_steps;
mod gradcheck_ways;
mod gradients;
mod interchange;
mod keras_examples;
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu"))]
mod kernels;
mod layer;
mod numerics;
mod oracle;
mod peers;
mod properties;
#[cfg(feature = "remote")]
mod remote;
#[cfg(feature = "autodiff")]
mod retrieval;
mod run;
mod shapes;
mod traps;

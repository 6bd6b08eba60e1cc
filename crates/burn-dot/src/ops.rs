//! What `Dot` needs from a backend beyond Burn's own operations, and the one list of backends.
//!
//! Every backend gets the default body. `Autodiff<B, C>` replaces it to give the operation a backward pass of its own,
//! written once for any `B`.

use burn_core as burn; // The macro writes paths that begin with `burn`.
use burn_core::backend::{Backend, backend_extension, tensor::FloatTensor};
use burn_core::tensor::FloatDType;

/// Operations of `Dot` on a backend's primitives.
#[backend_extension(
    Autodiff: cfg(feature = "autodiff"),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    // One entry for every CubeCL runtime.
    Cube: cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu")),
    LibTorch: cfg(feature = "tch"),
    Remote: cfg(feature = "remote"),
    Capture: cfg(feature = "capture"),
)]
pub trait DotOps: Backend {
    /// Casts to `dtype`; the gradient is cast back without leaving the finite range of the input's dtype.
    ///
    /// A norm at its floor of 1e-6 makes gradients a million times larger, which f16 (up to 65504) cannot hold: rounding
    /// them would give infinity. Only half precision comes here; f32 and f64 have the room.
    #[allow(unused_variables)] // Without a backend the macro has nowhere to send them.
    fn float_cast_finite_grad(tensor: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
        Self::float_cast(tensor, dtype)
    }
}

#[cfg(feature = "flex")]
impl DotOps for burn_core::backend::Flex {}
#[cfg(feature = "ndarray")]
impl DotOps for burn_core::backend::NdArray {}
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu"))]
impl DotOps for burn_core::backend::Cube {} // With and without fusion: the alias names whichever Burn was built with.
#[cfg(feature = "tch")]
impl DotOps for burn_core::backend::LibTorch {}
#[cfg(feature = "remote")]
impl DotOps for burn_core::backend::Remote {}
#[cfg(feature = "capture")]
impl DotOps for burn_core::backend::Capture {}

#[cfg(feature = "autodiff")]
mod autodiff {
    use super::*;
    use burn_core::backend::{
        Autodiff, TensorMetadata,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
    };

    #[derive(Debug)]
    struct CastFiniteGrad;

    impl<B: Backend> Backward<B, 1> for CastFiniteGrad {
        /// Dtype of the input.
        type State = FloatDType;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [parent] = ops.parents;
            if let Some(parent) = parent {
                // Flex32 is stored as f32.
                let largest = if ops.state == FloatDType::Flex32 { FloatDType::F32 } else { ops.state }.finfo().max;
                let grad = B::float_clamp(grad, (-largest).into(), largest.into());
                grads.register::<B>(parent.id, B::float_cast(grad, ops.state));
            }
        }
    }

    impl<B: DotOps, C: CheckpointStrategy> DotOps for Autodiff<B, C> {
        fn float_cast_finite_grad(tensor: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
            match CastFiniteGrad.prepare::<C>([tensor.node()]).compute_bound().stateful() {
                OpsKind::Tracked(prep) => {
                    let from = tensor.dtype().into();
                    prep.finish(from, B::float_cast(tensor.into_primitive(), dtype))
                }
                OpsKind::UnTracked(prep) => prep.finish(B::float_cast(tensor.into_primitive(), dtype)),
            }
        }
    }
}

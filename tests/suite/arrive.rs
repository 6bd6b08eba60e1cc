//! A gradient that is given to a tensor as it lies in memory. Burn's own backward pass begins with one of ones, which it makes.
#![cfg_attr(feature = "ndarray", allow(deprecated, reason = "burn-ndarray is, and still supported here"))]

use burn::backend::{
    Autodiff, Backend, TensorMetadata,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::FloatTensor,
};

/// An operation that gives a tensor its gradient. None of Burn's copies it on its way.
#[backend_extension(
    Autodiff,
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu")),
    LibTorch: cfg(feature = "tch"),
    Remote: cfg(feature = "remote"),
    Capture: cfg(feature = "capture"),
)]
pub trait Arrive: Backend {
    /// A scalar, of which the gradient with respect to `out` is `cotangent`.
    fn float_arrive(out: FloatTensor<Self>, _cotangent: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros([1].into(), &out.device(), out.dtype().into())
    }
}

#[cfg(feature = "flex")]
impl Arrive for burn::backend::Flex {}
#[cfg(feature = "ndarray")]
impl Arrive for burn::backend::NdArray {}
#[cfg(any(feature = "wgpu", feature = "cuda", feature = "rocm", feature = "cpu"))]
impl Arrive for burn::backend::Cube {}
#[cfg(feature = "tch")]
impl Arrive for burn::backend::LibTorch {}
#[cfg(feature = "remote")]
impl Arrive for burn::backend::Remote {}
#[cfg(feature = "capture")]
impl Arrive for burn::backend::Capture {}

#[derive(Debug)]
struct Arrival;

impl<B: Backend> Backward<B, 1> for Arrival {
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        grads.consume::<B>(&ops.node);
        if let [Some(parent)] = ops.parents {
            grads.register::<B>(parent.id, ops.state);
        }
    }
}

impl<B: Arrive, C: CheckpointStrategy> Arrive for Autodiff<B, C> {
    fn float_arrive(out: FloatTensor<Self>, cotangent: FloatTensor<Self>) -> FloatTensor<Self> {
        let (node, cotangent) = (out.node(), cotangent.into_primitive());
        let scalar = B::float_arrive(out.into_primitive(), cotangent.clone());
        match Arrival.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(cotangent, scalar),
            OpsKind::UnTracked(prep) => prep.finish(scalar),
        }
    }
}

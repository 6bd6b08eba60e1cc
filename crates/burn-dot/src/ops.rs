//! What `Dot` needs from a backend beyond Burn's own operations, and the one list of backends.
//!
//! Every backend gets the default bodies, the composition in `reference.rs`. A backend with a kernel overrides them; `Autodiff<B, C>`
//! does so in `backward.rs`, to give the product a backward pass of its own, written once for any `B`.

#![cfg_attr(
    not(any(
        feature = "flex",
        feature = "ndarray",
        feature = "wgpu",
        feature = "cuda",
        feature = "rocm",
        feature = "cpu",
        feature = "tch",
        feature = "remote",
        feature = "capture"
    )),
    expect(unused_variables, reason = "without a backend the macro has nowhere to send the arguments of default bodies")
)]

use alloc::sync::Arc;

use burn_core as burn; // The macro writes paths that begin with `burn`.
use burn_core::backend::{
    Backend, Device as _, Dispatch, DispatchDeviceId, ExtensionType, TensorMetadata, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn_core::tensor::{Device, FloatDType, IntDType};

use crate::{
    error::Operand,
    path::Path,
    plan::{FloatOptions, Plan},
    reference,
};

/// What a product saves for its gradients, beside its inputs.
#[derive(Clone, Debug, ExtensionType)]
pub enum Saved<B: Backend> {
    Nothing,
    /// Norms, and what else they come with, in whatever form the backend's own gradients read them.
    #[cfg_attr(not(any(feature = "flex", feature = "_cube")), allow(dead_code, reason = "only kernels keep any"))]
    Norms(FloatTensor<B>, Path),
    /// Of a remote device: what its server saved.
    #[cfg_attr(not(feature = "remote"), allow(dead_code, reason = "only a remote device has a server"))]
    OnServer(FloatTensor<B>),
}

/// Operations of `Dot` on a backend's primitives.
#[backend_extension(
    Autodiff: cfg(feature = "autodiff"),
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    // One entry for every CubeCL runtime, with and without fusion: see `gpu`.
    Cube: cfg(feature = "_cube"),
    LibTorch: cfg(feature = "tch"),
    // Its products may run in a server's kernels: see `remote`.
    Remote: cfg(feature = "remote"),
    Capture: cfg(feature = "capture"),
)]
pub trait DotOps: Backend {
    /// The product of float tensors.
    fn float_dot(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: Arc<Plan>, options: FloatOptions) -> FloatTensor<Self> {
        reference::float_dot::<Self>(lhs, rhs, &plan, options)
    }

    /// The product, where gradients will be asked for.
    fn float_dot_tracked(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
    ) -> (FloatTensor<Self>, Saved<Self>) {
        (Self::float_dot(lhs, rhs, plan, options), Saved::Nothing)
    }

    /// The gradient of the product with respect to one input, where `grad` is the gradient of the output.
    fn float_dot_grad(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] _saved: Saved<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
        of: Operand,
    ) -> FloatTensor<Self> {
        reference::float_dot_grad::<Self>(lhs, rhs, grad, &plan, options, of)
    }

    /// The gradients of the product with respect to both inputs.
    fn float_dot_grads(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        #[extension_type] _saved: Saved<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::float_dot_grads::<Self>(lhs, rhs, grad, &plan, options)
    }

    /// The product of integer tensors, in the dtype of the output if one is given.
    fn int_dot(lhs: IntTensor<Self>, rhs: IntTensor<Self>, plan: Arc<Plan>, output: Option<IntDType>) -> IntTensor<Self> {
        reference::int_dot::<Self>(lhs, rhs, &plan, output)
    }

    /// A contiguous copy, where Burn's reductions need one; the gradient passes.
    ///
    /// Inputs and gradients may be permuted views, and Burn's own operations come next: the sum over an axis that was expanded, say.
    fn float_in_memory_order(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor
    }

    /// The same tensor where it is read sooner, if it is large and will be read many times.
    fn float_in_huge_pages(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        tensor
    }

    /// Casts to `dtype`; the gradient is cast back without leaving the finite range of the input's dtype.
    ///
    /// A norm at its epsilon of 1e-6 makes gradients a million times larger, which f16 (up to 65504) cannot hold: rounding
    /// them would give infinity.
    fn float_cast_finite_grad(tensor: FloatTensor<Self>, dtype: FloatDType) -> FloatTensor<Self> {
        Self::float_cast(tensor, dtype)
    }
}

/// The feature that this crate lacks to compute on `device`, if any. What the list above has no entry for ends in a panic.
pub(crate) fn missing_feature(device: &Device) -> Option<&'static str> {
    if device.is_autodiff() && !cfg!(feature = "autodiff") {
        return Some("\"autodiff\"");
    }
    let (enabled, feature) = match backend_of(device)? {
        DispatchDeviceId::Flex => (cfg!(feature = "flex"), "\"flex\""),
        DispatchDeviceId::NdArray => (cfg!(feature = "ndarray"), "\"ndarray\""),
        DispatchDeviceId::Cube => (cfg!(feature = "_cube"), "\"wgpu\", \"cuda\", \"rocm\" or \"cpu\", as for burn,"),
        DispatchDeviceId::LibTorch => (cfg!(feature = "tch"), "\"tch\""),
        DispatchDeviceId::Remote => (cfg!(feature = "remote"), "\"remote\""),
        DispatchDeviceId::Capture => (cfg!(feature = "capture"), "\"capture\""),
    };
    (!enabled).then_some(feature)
}

/// The backend of a device. Variants of the device itself can be named only if their features are on.
pub(crate) fn backend_of(device: &Device) -> Option<DispatchDeviceId> {
    // The upper byte is Burn's number of the backend.
    DispatchDeviceId::try_from(device.as_dispatch().to_id().type_id >> 8).ok()
}

/// The product composed from operations that `Dispatch` differentiates.
pub(crate) fn float_dot_composed(
    lhs: FloatTensor<Dispatch>,
    rhs: FloatTensor<Dispatch>,
    plan: &Plan,
    options: FloatOptions,
) -> FloatTensor<Dispatch> {
    if plan.is_trivial() {
        return Dispatch::float_dot(lhs, rhs, Arc::new(plan.clone()), options); // Nothing to compose.
    }
    let (lhs, rhs) = (Dispatch::float_in_memory_order(lhs), Dispatch::float_in_memory_order(rhs));
    let input: FloatDType = lhs.dtype().into();
    let compute = options.accumulator(input);
    if options.normalize.is_none() || input == compute {
        return reference::float_dot::<Dispatch>(lhs, rhs, plan, options);
    }
    let output = Some(options.output.unwrap_or(input));
    let convert = |x| Dispatch::float_cast_finite_grad(x, compute);
    reference::float_dot::<Dispatch>(convert(lhs), convert(rhs), plan, FloatOptions { output, ..options })
}

#[cfg(feature = "ndarray")]
impl DotOps for burn_core::backend::NdArray {}
#[cfg(feature = "tch")]
impl DotOps for burn_core::backend::LibTorch {}
#[cfg(feature = "capture")]
impl DotOps for burn_core::backend::Capture {}

//! The client: products on a remote device, sent to its server whole where it is known to have this crate's operations, else composed.

use alloc::{format, string::String, sync::Arc, vec::Vec};
use core::fmt;
use std::sync::{PoisonError, RwLock};

use burn_core::backend::{
    DispatchDevice, Remote, RemoteDevice, TensorMetadata,
    ir::{CustomOpIr, ScalarIr, TensorIr},
    tensor::{FloatTensor, IntTensor},
};
use burn_core::tensor::{DType, Device, IntDType, Shape, remote::CustomOpClient};

use super::{names, write};
use crate::{
    error::Operand,
    ops::{DotOps, Saved},
    plan::{FloatOptions, Plan},
    reference,
};

/// The devices whose servers are known to have the operations.
static KNOWN: RwLock<Vec<RemoteDevice>> = RwLock::new(Vec::new());

fn is_known(device: &RemoteDevice) -> bool {
    KNOWN.read().unwrap_or_else(PoisonError::into_inner).contains(device)
}

/// From now on, sends products on a remote device to its server whole, to be computed by the kernels there.
///
/// A product is then one message, and its gradients another, where the composition of Burn's operations takes dozens. It needs a server
/// that was passed to `burn_dot::serve` (feature `server`), of a version of this crate with the same operations.
///
/// Call it as soon as the device is connected. Burn 0.22 has no question that a server without the operations could answer: it ends the
/// session that asks, and every tensor of the session is lost. So this asks once, before there are any, and products on devices that
/// nobody asked for are composed, as on any backend without kernels.
///
/// # Errors
///
/// A [`ServerError`] if the device is not remote, or if the server lacks the operations. The device cannot be used after that: Burn keeps
/// one session for each URL, credential and number of a device. Other devices and processes are not touched.
///
/// # Panics
///
/// Where Burn does, if the device was not connected yet and cannot be.
///
/// ```no_run
/// use burn::{prelude::*, remote::RemoteHost};
///
/// let host = RemoteHost::websocket("ws://gpu:3000").with_credential("token");
/// let device = Device::remote_options(&host).init()?;
/// burn_dot::use_server_kernels(&device)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn use_server_kernels(device: &Device) -> Result<(), ServerError> {
    let plain = device.clone().inner();
    let DispatchDevice::Remote(remote) = plain.as_dispatch() else {
        return Err(ServerError::NotRemote { device: format!("{device:?}") });
    };
    if is_known(remote) {
        return Ok(());
    }
    let [_ready] = call(names::READY, remote, [], [(Shape::new([1]), DType::F32)], Vec::new());
    plain.sync().map_err(|error| ServerError::NoKernels { device: format!("{device:?}"), reason: format!("{error}") })?;
    KNOWN.write().unwrap_or_else(PoisonError::into_inner).push(remote.clone());
    Ok(())
}

/// Why products on a device are not sent to its server whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerError {
    /// The device is not a remote one.
    NotRemote {
        /// The device.
        device: String,
    },
    /// The server ended the session when it was asked for the operations, or was gone before.
    NoKernels {
        /// The device.
        device: String,
        /// What Burn says.
        reason: String,
    },
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerError::NotRemote { device } => write!(f, "{device} is not a remote device, so it has no server"),
            ServerError::NoKernels { device, reason } => write!(
                f,
                "the server of {device} does not have the operations of this version of burn-dot, or is gone ({reason}); start it with \
                 burn_dot::serve, or connect anew without use_server_kernels"
            ),
        }
    }
}

impl core::error::Error for ServerError {}

/// The shape and dtype of a product.
fn output(plan: &Plan, dtype: DType, chosen: Option<impl Into<DType>>) -> (Shape, DType) {
    (plan.output.clone(), chosen.map_or(dtype, Into::into))
}

/// Sends an operation of so many outputs, of these shapes and dtypes.
fn call<const I: usize, const O: usize>(
    name: &'static str,
    device: &RemoteDevice,
    inputs: [FloatTensor<Remote>; I],
    outputs: [(Shape, DType); O],
    scalars: Vec<ScalarIr>,
) -> [FloatTensor<Remote>; O] {
    let client = CustomOpClient::new(device);
    let outputs = outputs.map(|(shape, dtype)| TensorIr::uninit(client.create_empty_handle(), shape, dtype));
    let inputs = inputs.map(|input| input.into_ir());
    let given = client.register(CustomOpIr::with_scalars(name, &inputs, &outputs, scalars));
    given.try_into().expect("as many tensors as outputs")
}

/// The gradients, with what was saved as a further input, if there is any.
fn call_backward<const O: usize>(
    name: &'static str,
    device: &RemoteDevice,
    [lhs, rhs, grad]: [FloatTensor<Remote>; 3],
    saved: Saved<Remote>,
    outputs: [(Shape, DType); O],
    scalars: Vec<ScalarIr>,
) -> [FloatTensor<Remote>; O] {
    match saved {
        Saved::OnServer(saved) => call(name, device, [lhs, rhs, grad, saved], outputs, scalars),
        _ => call(name, device, [lhs, rhs, grad], outputs, scalars),
    }
}

impl DotOps for Remote {
    fn float_dot(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: Arc<Plan>, options: FloatOptions) -> FloatTensor<Self> {
        let device = lhs.device();
        if !is_known(&device) {
            return reference::float_dot::<Self>(lhs, rhs, &plan, options);
        }
        let out = output(&plan, lhs.dtype(), options.output);
        let [out] = call(names::FLOAT_DOT, &device, [lhs, rhs], [out], write(&plan, options.normalize));
        out
    }

    fn float_dot_tracked(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
    ) -> (FloatTensor<Self>, Saved<Self>) {
        let device = lhs.device();
        // Of a plain product nothing is saved, on any backend.
        if !is_known(&device) || options.normalize.is_none() {
            return (Self::float_dot(lhs, rhs, plan, options), Saved::Nothing);
        }
        let out = output(&plan, lhs.dtype(), options.output);
        // Its shape and dtype are the server's own; nobody here reads them.
        let saved = (Shape::new([1]), DType::F32);
        let scalars = write(&plan, options.normalize);
        let [out, saved] = call(names::FLOAT_DOT_TRACKED, &device, [lhs, rhs], [out, saved], scalars);
        (out, Saved::OnServer(saved))
    }

    fn float_dot_grad(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: Saved<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
        of: Operand,
    ) -> FloatTensor<Self> {
        let device = lhs.device();
        if !is_known(&device) {
            return reference::float_dot_grad::<Self>(lhs, rhs, grad, &plan, options, of);
        }
        let (name, shape) = match of {
            Operand::Lhs => (names::FLOAT_DOT_GRAD_LHS, plan.lhs.shape.clone()),
            Operand::Rhs => (names::FLOAT_DOT_GRAD_RHS, plan.rhs.shape.clone()),
        };
        let (output, scalars) = ((shape, lhs.dtype()), write(&plan, options.normalize));
        let [grad] = call_backward(name, &device, [lhs, rhs, grad], saved, [output], scalars);
        grad
    }

    fn float_dot_grads(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: Saved<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let device = lhs.device();
        if !is_known(&device) {
            return reference::float_dot_grads::<Self>(lhs, rhs, grad, &plan, options);
        }
        let outputs = [&plan.lhs, &plan.rhs].map(|input| (input.shape.clone(), lhs.dtype()));
        let scalars = write(&plan, options.normalize);
        let [grad_lhs, grad_rhs] = call_backward(names::FLOAT_DOT_GRADS, &device, [lhs, rhs, grad], saved, outputs, scalars);
        (grad_lhs, grad_rhs)
    }

    fn int_dot(lhs: IntTensor<Self>, rhs: IntTensor<Self>, plan: Arc<Plan>, output: Option<IntDType>) -> IntTensor<Self> {
        let device = lhs.device();
        if !is_known(&device) {
            return reference::int_dot::<Self>(lhs, rhs, &plan, output);
        }
        let out = self::output(&plan, lhs.dtype(), output);
        let [out] = call(names::INT_DOT, &device, [lhs, rhs], [out], write(&plan, None));
        out
    }

    /// As the server's backend has it. What backend that is is not known here: without its operations it may be one that needs a copy.
    fn float_in_memory_order(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        let (device, shape, dtype) = (tensor.device(), tensor.shape(), tensor.dtype());
        if !is_known(&device) {
            return reference::in_memory_order::<Self>(tensor, shape);
        }
        let [tensor] = call(names::IN_MEMORY_ORDER, &device, [tensor], [(shape, dtype)], Vec::new());
        tensor
    }
}

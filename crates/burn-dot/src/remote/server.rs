//! The server: the operations of this crate, computed by the backend of its devices.

use alloc::sync::Arc;

use burn_core::backend::{
    DispatchDevice, TensorMetadata,
    ir::{BackendIr, CustomOpIr, HandleContainer},
    tensor::FloatTensor,
};
use burn_core::tensor::{DType, Device, FloatDType, Shape, server::RemoteServer};

use super::{names, read};
use crate::{
    error::Operand,
    ops::{DotOps, Saved},
    path::Path,
    plan::{FloatOptions, Plan},
};

/// Adds the operations of this crate to a server whose devices are of the same backend as `device`.
///
/// Clients that ask for them by [`use_server_kernels`](crate::use_server_kernels) then send products whole, and they are computed as on
/// `device` itself: by kernels on flex and on CubeCL's devices (wgpu, cuda, …), composed on ndarray. Other clients are served as before.
///
/// `device` has to be given because Burn 0.22 does not tell which devices a server has, and starts no server with operations for another
/// backend: it says so when the server is started. A device whose feature is not enabled on this crate adds nothing.
///
/// A message that does not fit its tensors ends the session it came in, and no other.
///
/// ```no_run
/// use burn::{prelude::*, server::{RemoteServer, TokenAuthorizer, WebSocketTransport}};
///
/// let device = Device::flex();
/// let server = RemoteServer::new([device.clone()]).with_authorizer(TokenAuthorizer::new("token")?);
/// // Unencrypted, and on every interface: `from_listener` serves on an address of your choice.
/// burn_dot::serve(server, &device).serve(WebSocketTransport::new(3000))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the server that is returned has the operations"]
pub fn serve(server: RemoteServer, device: &Device) -> RemoteServer {
    match device.clone().inner().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => register::<burn_core::backend::Flex>(server),
        #[cfg(feature = "_cube")]
        DispatchDevice::Cube(_) => register::<burn_core::backend::Cube>(server),
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => register::<burn_core::backend::NdArray>(server),
        _ => server,
    }
}

#[cfg_attr(
    not(any(feature = "flex", feature = "_cube", feature = "ndarray")),
    expect(dead_code, reason = "no backend to serve")
)]
fn register<B: DotOps + BackendIr>(server: RemoteServer) -> RemoteServer {
    server
        .with_custom_op::<B, _>(names::READY, |handles, ir, device| {
            let ([], [ready]) = ir.as_fixed();
            handles.register_float_tensor::<B>(&ready.id, B::float_zeros(Shape::new([1]), device, FloatDType::F32));
        })
        .with_custom_op::<B, _>(names::FLOAT_DOT, |handles, ir, _| {
            let [lhs, rhs] = floats::<B, 2>(handles, ir);
            let (plan, options) = product::<B>(ir, &lhs, &rhs, ir.outputs[0].dtype);
            answer::<B, 1>(handles, ir, [B::float_dot(lhs, rhs, plan, options)]);
        })
        .with_custom_op::<B, _>(names::FLOAT_DOT_TRACKED, |handles, ir, _| {
            let [lhs, rhs] = floats::<B, 2>(handles, ir);
            let (plan, options) = product::<B>(ir, &lhs, &rhs, ir.outputs[0].dtype);
            let device = lhs.device();
            let (out, saved) = B::float_dot_tracked(lhs, rhs, plan, options);
            answer::<B, 2>(handles, ir, [out, as_tensor::<B>(saved, &device)]);
        })
        .with_custom_op::<B, _>(names::FLOAT_DOT_GRAD_LHS, |handles, ir, _| {
            let Backward { lhs, rhs, grad, saved, plan, options } = Backward::<B>::new(handles, ir);
            answer::<B, 1>(handles, ir, [B::float_dot_grad(lhs, rhs, grad, saved, plan, options, Operand::Lhs)]);
        })
        .with_custom_op::<B, _>(names::FLOAT_DOT_GRAD_RHS, |handles, ir, _| {
            let Backward { lhs, rhs, grad, saved, plan, options } = Backward::<B>::new(handles, ir);
            answer::<B, 1>(handles, ir, [B::float_dot_grad(lhs, rhs, grad, saved, plan, options, Operand::Rhs)]);
        })
        .with_custom_op::<B, _>(names::FLOAT_DOT_GRADS, |handles, ir, _| {
            let Backward { lhs, rhs, grad, saved, plan, options } = Backward::<B>::new(handles, ir);
            answer::<B, 2>(handles, ir, B::float_dot_grads(lhs, rhs, grad, saved, plan, options).into());
        })
        .with_custom_op::<B, _>(names::INT_DOT, |handles, ir, _| {
            let ([lhs, rhs], [out]) = ir.as_fixed();
            let (lhs, rhs) = (handles.get_int_tensor::<B>(lhs), handles.get_int_tensor::<B>(rhs));
            let (plan, _) = plan(ir, &lhs, &rhs);
            let out_dtype = (out.dtype != lhs.dtype()).then(|| out.dtype.into());
            handles.register_int_tensor::<B>(&out.id, B::int_dot(lhs, rhs, plan, out_dtype));
        })
        .with_custom_op::<B, _>(names::IN_MEMORY_ORDER, |handles, ir, _| {
            let [x] = floats::<B, 1>(handles, ir);
            answer::<B, 1>(handles, ir, [B::float_in_memory_order(x)]);
        })
}

type Handles<B> = HandleContainer<<B as BackendIr>::Handle>;

fn floats<B: BackendIr, const N: usize>(handles: &mut Handles<B>, ir: &CustomOpIr) -> [FloatTensor<B>; N] {
    let inputs: &[_; N] = ir.inputs.as_slice().try_into().expect("as many inputs as the operation has");
    inputs.each_ref().map(|input| handles.get_float_tensor::<B>(input))
}

fn answer<B: BackendIr, const N: usize>(handles: &mut Handles<B>, ir: &CustomOpIr, given: [FloatTensor<B>; N]) {
    let outputs: &[_; N] = ir.outputs.as_slice().try_into().expect("as many outputs as the operation has");
    for (output, tensor) in outputs.iter().zip(given) {
        handles.register_float_tensor::<B>(&output.id, tensor);
    }
}

/// The plan of two inputs, and the epsilon. The client has checked them: what does not fit is not from one, and ends its session.
fn plan<T: TensorMetadata>(ir: &CustomOpIr, lhs: &T, rhs: &T) -> (Arc<Plan>, Option<f64>) {
    assert_eq!(lhs.dtype(), rhs.dtype(), "{}: dtypes of lhs and rhs", ir.id);
    match read(&ir.scalars, &lhs.shape(), &rhs.shape()) {
        Ok((plan, normalize)) => (Arc::new(plan), normalize),
        Err(reason) => panic!("{}: {reason}", ir.id),
    }
}

fn product<B: BackendIr>(
    ir: &CustomOpIr,
    lhs: &FloatTensor<B>,
    rhs: &FloatTensor<B>,
    output: DType,
) -> (Arc<Plan>, FloatOptions) {
    let (plan, normalize) = plan(ir, lhs, rhs);
    (plan, FloatOptions { normalize, output: (output != lhs.dtype()).then(|| output.into()) })
}

/// What the gradients are computed from.
struct Backward<B: DotOps> {
    lhs: FloatTensor<B>,
    rhs: FloatTensor<B>,
    grad: FloatTensor<B>,
    saved: Saved<B>,
    plan: Arc<Plan>,
    options: FloatOptions,
}

impl<B: DotOps + BackendIr> Backward<B> {
    fn new(handles: &mut Handles<B>, ir: &CustomOpIr) -> Self {
        let ([lhs, rhs, grad], saved) = match ir.inputs.len() {
            4 => {
                let [lhs, rhs, grad, saved] = floats::<B, 4>(handles, ir);
                ([lhs, rhs, grad], from_tensor::<B>(saved))
            }
            _ => (floats::<B, 3>(handles, ir), Saved::Nothing),
        };
        let (plan, options) = product::<B>(ir, &lhs, &rhs, grad.dtype());
        assert_eq!(grad.shape(), plan.output, "{}: the gradient of the output", ir.id);
        Backward { lhs, rhs, grad, saved, plan, options }
    }
}

/// What was saved, in a single tensor: the only thing that a session keeps for as long as the client holds it. Its rank says what it is,
/// which is known without waiting for a device.
fn as_tensor<B: DotOps>(saved: Saved<B>, device: &B::Device) -> FloatTensor<B> {
    let (norms, rank) = match saved {
        Saved::Norms(norms, path) => (norms, 2 + PATHS.iter().position(|&each| each == path).expect("every path is listed")),
        Saved::Nothing | Saved::OnServer(_) => (B::float_zeros(Shape::new([1]), device, FloatDType::F32), 1),
    };
    let mut shape = vec![1; rank];
    shape[rank - 1] = norms.shape().num_elements();
    B::float_reshape(norms, shape.into())
}

/// The opposite of [`as_tensor`].
fn from_tensor<B: DotOps>(saved: FloatTensor<B>) -> Saved<B> {
    match saved.rank().checked_sub(2).and_then(|path| PATHS.get(path)) {
        Some(&path) => {
            let count = saved.shape().num_elements();
            Saved::Norms(B::float_reshape(saved, Shape::new([count])), path)
        }
        None => Saved::Nothing,
    }
}

const PATHS: [Path; 3] = [Path::Reduction { vector: Operand::Lhs }, Path::Reduction { vector: Operand::Rhs }, Path::Gemm];

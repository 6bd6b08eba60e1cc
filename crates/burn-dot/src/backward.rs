//! The backward pass of the product: its derivation, and the operation for `Autodiff<B, C>`, generic over `B`.
//!
//! # Derivation
//!
//! Every pairing is a batch of matrix products: with `b` over the shared axes, `i` and `j` over the free axes of lhs and rhs, `k` over
//! the contracted ones,
//!
//! ```text
//! out_ij = Σₖ u_ik v_jk            (for each b)
//! ```
//!
//! where `u = x`, `v = y` for the plain product. With `g = ∂L/∂out`, the chain rule gives
//!
//! ```text
//! ∂L/∂u_ik = Σⱼ g_ij v_jk          ∂L/∂v_jk = Σᵢ g_ij u_ik
//! ```
//!
//! A batch of 1 that is broadcast to the other input's batch is summed over that batch.
//!
//! Normalized, `u = x/t` with `t = max(‖x‖, epsilon)`. Above the epsilon `∂t/∂x = u`, so for a vector `h = ∂L/∂u`
//!
//! ```text
//! ∂L/∂x = (h − u (u·h)) / t        ‖x‖ ≥ epsilon: the part of h along u cannot change a unit vector
//! ∂L/∂x = h / epsilon                ‖x‖ < epsilon: t is constant
//! ```
//!
//! The inputs are saved for the backward pass, not the normalized ones. A kernel may save norms too, where these are much less than
//! the inputs: it need not read them twice then. Written for such a kernel, with `s = 1/t`, the gradient of the normalized product is
//! that of a plain product with the other side scaled, and a projection:
//!
//! ```text
//! p_i  = Σⱼ g_ij (sⱼ y_j)                       plain product
//! ∂L/∂x_i = sᵢ (p_i − x_i sᵢ² (x_i·p_i))        the second term only where ‖x_i‖ ≥ epsilon
//! ```
//!
//! The guard that keeps outputs in [-1, 1] moves them by rounding errors only, and is left out of the gradient.
//!
//! # Checkpointing
//!
//! An input is saved only if some tracked gradient needs it, and by its node: under gradient checkpointing it is recomputed from its
//! own parents if these are light; norms stay. The product itself counts as heavy, as Burn's matrix product does: its output is saved.

use alloc::sync::Arc;

use burn_core::backend::{
    Autodiff, Backend, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::{FloatTensor, IntTensor},
};
use burn_core::tensor::{FloatDType, IntDType, Shape};

use crate::{
    error::Operand,
    ops::{DotOps, Saved},
    plan::{FloatOptions, Plan},
    reference,
};

#[derive(Debug)]
struct FloatDot;

#[derive(Clone, Debug)]
struct State<B: Backend> {
    /// The inputs, where a tracked gradient needs them.
    lhs: Option<NodeId>,
    rhs: Option<NodeId>,
    saved: Saved<B>,
    dtype: FloatDType,
    plan: Arc<Plan>,
    options: FloatOptions,
}

impl<B: DotOps> Backward<B, 2> for FloatDot {
    type State = State<B>;

    fn backward(self, ops: Ops<State<B>, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let State { lhs, rhs, saved, dtype, plan, options } = ops.state;
        let grad = grads.consume::<B>(&ops.node);
        let mut input = |saved: Option<NodeId>, shape: &Shape| -> FloatTensor<B> {
            match saved {
                Some(node) => checkpointer.retrieve_node_output(node),
                None => placeholder::<B>(shape, dtype, &grad.device()),
            }
        };
        let (lhs, rhs) = (input(lhs, &plan.lhs.shape), input(rhs, &plan.rhs.shape));
        // A gradient may be a permuted view, unless its input has its axes in the order batch, free, contracted.
        let mut register = |node: NodeId, grad, order: &[usize]| {
            let grad = if order.is_sorted() { grad } else { B::float_in_memory_order(grad) };
            grads.register::<B>(node, grad);
        };
        let (of_lhs, of_rhs) = (plan.lhs.order.clone(), plan.rhs.order.clone());
        match ops.parents {
            [Some(lhs_node), Some(rhs_node)] => {
                let (grad_lhs, grad_rhs) = B::float_dot_grads(lhs, rhs, grad, saved, plan, options);
                register(lhs_node.id, grad_lhs, &of_lhs);
                register(rhs_node.id, grad_rhs, &of_rhs);
            }
            [Some(node), None] => {
                register(node.id, B::float_dot_grad(lhs, rhs, grad, saved, plan, options, Operand::Lhs), &of_lhs);
            }
            [None, Some(node)] => {
                register(node.id, B::float_dot_grad(lhs, rhs, grad, saved, plan, options, Operand::Rhs), &of_rhs);
            }
            [None, None] => {}
        }
    }
}

/// A placeholder of stride 0 for an input that is not saved: it has its shape and takes no memory.
fn placeholder<B: Backend>(shape: &Shape, dtype: FloatDType, device: &B::Device) -> FloatTensor<B> {
    let zero = B::float_zeros(shape.iter().map(|_| 1usize).collect(), device, dtype);
    B::float_expand(zero, shape.clone())
}

#[derive(Debug)]
struct InMemoryOrder;

impl<B: DotOps> Backward<B, 1> for InMemoryOrder {
    type State = ();

    fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, B::float_in_memory_order(grad));
        }
    }
}

#[derive(Debug)]
struct CastFiniteGrad;

impl<B: Backend> Backward<B, 1> for CastFiniteGrad {
    /// Dtype of the input.
    type State = FloatDType;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let [parent] = ops.parents;
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, reference::cast_finite::<B>(grad, ops.state));
        }
    }
}

impl<B: DotOps, C: CheckpointStrategy> DotOps for Autodiff<B, C> {
    fn float_dot(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: Arc<Plan>, options: FloatOptions) -> FloatTensor<Self> {
        match FloatDot.prepare::<C>([lhs.node(), rhs.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prep) => {
                let normalized = options.normalize.is_some();
                let (lhs_saved, rhs_saved) = (
                    (normalized || rhs.is_tracked()).then(|| prep.checkpoint(&lhs)),
                    (normalized || lhs.is_tracked()).then(|| prep.checkpoint(&rhs)),
                );
                let dtype = lhs.dtype().into();
                let (out, saved) = B::float_dot_tracked(lhs.into_primitive(), rhs.into_primitive(), plan.clone(), options);
                prep.finish(State { lhs: lhs_saved, rhs: rhs_saved, saved, dtype, plan, options }, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::float_dot(lhs.into_primitive(), rhs.into_primitive(), plan, options)),
        }
    }

    /// Integers have no gradient: the backend's own product.
    fn int_dot(lhs: IntTensor<Self>, rhs: IntTensor<Self>, plan: Arc<Plan>, output: Option<IntDType>) -> IntTensor<Self> {
        B::int_dot(lhs, rhs, plan, output)
    }

    fn float_in_memory_order(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        match InMemoryOrder.prepare::<C>([tensor.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), B::float_in_memory_order(tensor.into_primitive())),
            OpsKind::UnTracked(prep) => prep.finish(B::float_in_memory_order(tensor.into_primitive())),
        }
    }

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

//! The operations on flex: kernels where they apply, else the composition.

use alloc::sync::Arc;

use burn_core::backend::{Flex, tensor::FloatTensor};
use burn_core::tensor::FloatDType;

use super::{Grads, float_dot, float_dot_grads, has_kernel, in_huge_pages};
use crate::{
    error::Operand,
    ops::{DotOps, Saved},
    plan::{FloatOptions, Plan, Wanted},
    reference,
};

/// A product on flex in dtypes that the kernels have: its own, or the accumulator's, with casts before and after.
struct Kernel {
    compute: FloatDType,
    options: FloatOptions,
}

impl Kernel {
    fn new(input: FloatDType, options: FloatOptions) -> Self {
        match has_kernel(input, options.output.unwrap_or(input)) {
            true => Kernel { compute: input, options },
            false => Kernel { compute: options.accumulator(input), options: FloatOptions { output: None, ..options } },
        }
    }

    /// A tensor as the kernels read it.
    fn cast(&self, x: FloatTensor<Flex>) -> FloatTensor<Flex> {
        reference::cast::<Flex>(x, self.compute)
    }

    fn forward(
        lhs: FloatTensor<Flex>,
        rhs: FloatTensor<Flex>,
        plan: &Plan,
        options: FloatOptions,
        save: bool,
    ) -> (FloatTensor<Flex>, Saved<Flex>) {
        let input = lhs.dtype().into();
        let kernel = Kernel::new(input, options);
        let (lhs, rhs) = (kernel.cast(lhs), kernel.cast(rhs));
        let (out, saved) = match float_dot(&lhs, &rhs, plan, kernel.options, save) {
            Some(product) => (product.out, Saved::new(product.saved)),
            None => (reference::float_dot::<Flex>(lhs, rhs, plan, kernel.options), Saved::Nothing),
        };
        (reference::cast::<Flex>(out, options.output.unwrap_or(input)), saved)
    }

    fn backward(
        [lhs, rhs]: [FloatTensor<Flex>; 2],
        grad: FloatTensor<Flex>,
        saved: Saved<Flex>,
        plan: &Plan,
        options: FloatOptions,
        wanted: Wanted,
    ) -> Grads {
        let input = lhs.dtype().into();
        let kernel = Kernel::new(input, options);
        // A kernel of two dtypes reads the gradient in that of the output.
        let grad = if kernel.options.output.is_some() { grad } else { kernel.cast(grad) };
        let inputs = [kernel.cast(lhs), kernel.cast(rhs)];
        let grads = match float_dot_grads(inputs, &grad, saved.into_norms().as_ref(), plan, kernel.options, wanted) {
            Ok(grads) => grads,
            Err([lhs, rhs]) => {
                let of = |wanted: bool, of: Operand| {
                    let inputs = (lhs.clone(), rhs.clone());
                    wanted
                        .then(|| reference::float_dot_grad::<Flex>(inputs.0, inputs.1, grad.clone(), plan, kernel.options, of))
                };
                Grads { lhs: of(wanted.lhs, Operand::Lhs), rhs: of(wanted.rhs, Operand::Rhs) }
            }
        };
        // As in the composition: the gradient of a cosine does not leave the finite range.
        let cast = if options.normalize.is_some() { reference::cast_finite::<Flex> } else { reference::cast::<Flex> };
        let back = |grad: Option<FloatTensor<Flex>>| grad.map(|grad| cast(grad, input));
        Grads { lhs: back(grads.lhs), rhs: back(grads.rhs) }
    }
}

impl Saved<Flex> {
    fn new(saved: Option<super::Saved>) -> Self {
        saved.map_or(Saved::Nothing, |super::Saved { norms, by }| Saved::Norms(norms, by))
    }

    fn into_norms(self) -> Option<super::Saved> {
        match self {
            Saved::Nothing | Saved::OnServer(_) => None,
            Saved::Norms(norms, by) => Some(super::Saved { norms, by }),
        }
    }
}

impl DotOps for Flex {
    fn float_dot(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, plan: Arc<Plan>, options: FloatOptions) -> FloatTensor<Self> {
        Kernel::forward(lhs, rhs, &plan, options, false).0
    }

    fn float_dot_tracked(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
    ) -> (FloatTensor<Self>, Saved<Self>) {
        Kernel::forward(lhs, rhs, &plan, options, true)
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
        let grads = Kernel::backward([lhs, rhs], grad, saved, &plan, options, Wanted::only(of));
        grads.lhs.or(grads.rhs).expect("the one that was asked for")
    }

    fn float_dot_grads(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: Saved<Self>,
        plan: Arc<Plan>,
        options: FloatOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let Grads { lhs, rhs } = Kernel::backward([lhs, rhs], grad, saved, &plan, options, Wanted::BOTH);
        (lhs.expect("asked for"), rhs.expect("asked for"))
    }

    fn float_in_huge_pages(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        in_huge_pages(tensor)
    }
}

//! The operations with kernels, as an extension of their own: the macro makes them lazy under fusion.

// The macro writes paths into `burn::backend`, and `burn::backend::fusion` exists only where `burn-core/fusion` is on, which says nothing about
// whether `Cube` is fused. So it gets both from here.
mod shim {
    pub mod backend {
        pub use burn_core::backend::*;
        pub use burn_fusion as fusion;
    }
}

use burn_core::backend::{Backend, backend_extension, tensor::FloatTensor};
use burn_core::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_fusion::custom::TensorSpec;
use shim as burn;

use super::{Chosen, matrices, rows};
use crate::{error::Operand, path::Path, plan::Wanted};

fn output_dtype(input: DType, chosen: &Chosen) -> DType {
    chosen.options.output.map_or(input, DType::from)
}

/// The output, and what is saved.
fn saving_specs(lhs: &TensorSpec, _rhs: &TensorSpec, chosen: &Chosen) -> (TensorSpec, TensorSpec) {
    let Chosen { plan, options, path } = chosen;
    let saved = match path {
        Path::Reduction { .. } => rows::saved_shape(plan),
        Path::Gemm => matrices::saved_shape(plan),
    };
    let accumulator = options.accumulator(lhs.dtype.into());
    (TensorSpec::new(plan.output.clone(), output_dtype(lhs.dtype, chosen)), TensorSpec::new(saved.into(), accumulator.into()))
}

/// The gradients: of the same shapes and dtypes as the inputs.
fn grads_specs(
    lhs: &TensorSpec,
    rhs: &TensorSpec,
    _grad: &TensorSpec,
    _saved: &TensorSpec,
    _chosen: &Chosen,
) -> (TensorSpec, TensorSpec) {
    (lhs.clone(), rhs.clone())
}

/// A product by the kernels that were chosen. `saved` is what [`gpu_dot_saving`](Self::gpu_dot_saving) gave, and is not read
/// where the product is plain.
#[backend_extension(Cube, Fusion)]
pub trait GpuOps: Backend {
    #[fusion(dtype = output_dtype(lhs, chosen), shape = chosen.plan.output.clone())]
    fn gpu_dot(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, chosen: Chosen) -> FloatTensor<Self>;

    #[fusion(meta = saving_specs)]
    fn gpu_dot_saving(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, chosen: Chosen)
    -> (FloatTensor<Self>, FloatTensor<Self>);

    #[fusion(dtype = lhs, shape = match of {
        Operand::Lhs => lhs.clone(),
        Operand::Rhs => rhs.clone(),
    })]
    fn gpu_dot_grad(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        chosen: Chosen,
        of: Operand,
    ) -> FloatTensor<Self>;

    #[fusion(meta = grads_specs)]
    fn gpu_dot_grads(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        chosen: Chosen,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

impl GpuOps for CubeBackend {
    fn gpu_dot(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>, chosen: Chosen) -> FloatTensor<Self> {
        let Chosen { plan, options, path } = chosen;
        match path {
            Path::Reduction { .. } => rows::forward(lhs, rhs, &plan, options, false).0,
            Path::Gemm => matrices::forward(lhs, rhs, &plan, options).0,
        }
    }

    fn gpu_dot_saving(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        chosen: Chosen,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let Chosen { plan, options, path } = chosen;
        match path {
            Path::Reduction { .. } => rows::forward(lhs, rhs, &plan, options, true),
            Path::Gemm => matrices::forward(lhs, rhs, &plan, options),
        }
    }

    fn gpu_dot_grad(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        chosen: Chosen,
        of: Operand,
    ) -> FloatTensor<Self> {
        let [lhs, rhs] = gradients([lhs, rhs], grad, saved, chosen, Wanted::only(of));
        lhs.or(rhs).expect("the one that is wanted")
    }

    fn gpu_dot_grads(
        lhs: FloatTensor<Self>,
        rhs: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        chosen: Chosen,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [lhs, rhs] = gradients([lhs, rhs], grad, saved, chosen, Wanted::BOTH);
        (lhs.expect("wanted"), rhs.expect("wanted"))
    }
}

fn gradients(
    inputs: [FloatTensor<CubeBackend>; 2],
    grad: FloatTensor<CubeBackend>,
    saved: FloatTensor<CubeBackend>,
    Chosen { plan, options, path }: Chosen,
    wanted: Wanted,
) -> [Option<FloatTensor<CubeBackend>>; 2] {
    match path {
        Path::Reduction { vector } => rows::backward(inputs, grad, &saved, &plan, options, vector, wanted),
        Path::Gemm => matrices::backward(inputs, grad, &saved, &plan, options, wanted),
    }
}

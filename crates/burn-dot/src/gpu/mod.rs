//! Kernels for GPUs: one implementation for all CubeCL runtimes (wgpu, vulkan, metal, webgpu, cuda, rocm, cpu).
//!
//! ```text
//! DotOps → choose → GpuOps, lazy under fusion → rows, matrices (launches) → kernels
//! ```
//!
//! | product | forward | backward |
//! |---|---|---|
//! | rows: an input has a single vector for each batch index | 1 launch, norms included | 1 launch for both gradients; 2 where few vectors meet many |
//! | normalized matrices | norms · Burn's matmul · cosines | unit vectors · a matmul for each gradient · projection; both by 2 launches where the inputs' vectors are not equally wide |
//! | plain matrices, integers, empty products | composed: Burn's matmul | composed |
//!
//! Inputs are read in place with any strides, expanded and permuted ones too. Beside its results the row path has six elements for each
//! row, and where few vectors meet many, parts of their gradients: at most one element, of the accumulator's dtype, for 16 of the larger
//! input.
//!
//! # The choice
//!
//! It depends on the plan, the options, the dtypes and the device: under fusion an operation is registered before strides are known. Where
//! the strides matter, which is how units share a row, launches decide. Tests may force a reduction ([`force_reduction`]), and kernels with it.
//!
//! What stays composed, beside the last line of the table: sums over a batch along which the vectors of a matrix are broadcast; matrices
//! whose reduction dimension is longer than Burn's matmul adds exactly; rows of more than 2²² elements, for
//! which the units of a cube are too few; dtypes whose arithmetic the device chooses (flex32); and, on devices
//! without plane operations, plain rows so short that a fused multiply-and-sum of Burn's is as fast.
//!
//! # Fusion
//!
//! `Cube` is [`CubeBackend`], or `Fusion<CubeBackend>` if Burn was built with fusion, which a library cannot see. So [`DotOps`] is
//! implemented for both. The operations of [`GpuOps`] end a fused segment; what is composed keeps Burn's fusion.

mod kernels;
mod launch;
mod matrices;
mod ops;
mod rows;

pub use kernels::Reduction;
pub use launch::force_reduction;

use alloc::sync::Arc;

use burn_core::backend::{TensorMetadata, tensor::FloatTensor};
use burn_core::tensor::{DType, FloatDType};
use burn_cubecl::{CubeBackend, CubeDevice};
use burn_fusion::{Fusion, FusionBackend, FusionRuntime};

use self::{
    launch::{LONGEST_PASS, Units, forced},
    ops::GpuOps,
};
use crate::{
    error::Operand,
    ops::{DotOps, Saved},
    path::{Pass, Path},
    plan::{FloatOptions, Plan},
    reference,
};

/// A product, and the kernels that were chosen for a pass of it.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub plan: Arc<Plan>,
    pub options: FloatOptions,
    pub path: Path,
}

/// The kernels of a pass, or none if it is composed.
fn choose(plan: &Plan, input: FloatDType, options: FloatOptions, device: Units, forced: bool, pass: Pass) -> Option<Path> {
    let known = |dtype| matches!(dtype, FloatDType::F64 | FloatDType::F32 | FloatDType::F16 | FloatDType::BF16);
    if plan.is_trivial() || !known(input) || !options.output.is_none_or(known) {
        return None;
    }
    let normalized = options.normalize.is_some();
    // Vectors that meet a matrix broadcast along the batch are a matrix product; only if m = n = 1 does a broadcast input stay one of rows.
    let allow_broadcast = pass == Pass::Forward && plan.m == 1 && plan.n == 1;
    let path = Path::choose(plan, None, allow_broadcast);
    let has_kernels = match path {
        Path::Reduction { .. } => {
            let is_chosen = normalized || device.planes || plan.k > reference::LONGEST_ROW_SUM || forced;
            is_chosen && plan.k <= LONGEST_PASS * device.most
        }
        Path::Gemm => {
            let longest = if pass == Pass::Forward { plan.k } else { plan.m.max(plan.n) };
            let is_summed = pass == Pass::Backward && plan.is_broadcast();
            normalized && longest <= reference::LONGEST_PRODUCT && !is_summed
        }
    };
    has_kernels.then_some(path)
}

/// A product on a CubeCL device, and how its passes are computed.
struct CubeProduct<'a> {
    plan: &'a Arc<Plan>,
    options: FloatOptions,
    dtype: FloatDType,
    device: Units,
}

impl<'a> CubeProduct<'a> {
    fn new(device: &CubeDevice, dtype: DType, plan: &'a Arc<Plan>, options: FloatOptions) -> Self {
        CubeProduct { plan, options, dtype: dtype.into(), device: Units::of(&device.client()) }
    }

    fn choose(&self, pass: Pass) -> Option<Chosen> {
        let path = choose(self.plan, self.dtype, self.options, self.device, forced().is_some(), pass)?;
        Some(Chosen { plan: self.plan.clone(), options: self.options, path })
    }

    fn forward<B: GpuOps>(&self, lhs: FloatTensor<B>, rhs: FloatTensor<B>, save: bool) -> (FloatTensor<B>, Saved<B>) {
        let Some(chosen) = self.choose(Pass::Forward) else {
            return (reference::float_dot::<B>(lhs, rhs, self.plan, self.options), Saved::Nothing);
        };
        let path = chosen.path;
        let is_read = || self.choose(Pass::Backward).is_some_and(|backward| backward.path == path);
        if save && self.options.normalize.is_some() && is_read() {
            let (out, saved) = B::gpu_dot_saving(lhs, rhs, chosen);
            return (out, Saved::Norms(saved, path));
        }
        (B::gpu_dot(lhs, rhs, chosen), Saved::Nothing)
    }

    /// How the gradients are computed, and what the kernels read beside inputs and gradient: of a plain product nothing, so any tensor.
    fn backward<B: GpuOps>(&self, grad: &FloatTensor<B>, saved: Saved<B>) -> Option<(Chosen, FloatTensor<B>)> {
        let chosen = self.choose(Pass::Backward)?;
        match saved {
            Saved::Norms(saved, by) => (by == chosen.path).then_some((chosen, saved)),
            Saved::Nothing | Saved::OnServer(_) => self.options.normalize.is_none().then(|| (chosen, grad.clone())),
        }
    }
}

/// The same methods with and without fusion.
macro_rules! dot_ops {
    () => {
        fn float_dot(
            lhs: FloatTensor<Self>,
            rhs: FloatTensor<Self>,
            plan: Arc<Plan>,
            options: FloatOptions,
        ) -> FloatTensor<Self> {
            CubeProduct::new(&lhs.device(), lhs.dtype(), &plan, options).forward::<Self>(lhs, rhs, false).0
        }

        fn float_dot_tracked(
            lhs: FloatTensor<Self>,
            rhs: FloatTensor<Self>,
            plan: Arc<Plan>,
            options: FloatOptions,
        ) -> (FloatTensor<Self>, Saved<Self>) {
            CubeProduct::new(&lhs.device(), lhs.dtype(), &plan, options).forward::<Self>(lhs, rhs, true)
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
            match CubeProduct::new(&lhs.device(), lhs.dtype(), &plan, options).backward::<Self>(&grad, saved) {
                Some((chosen, saved)) => Self::gpu_dot_grad(lhs, rhs, grad, saved, chosen, of),
                None => reference::float_dot_grad::<Self>(lhs, rhs, grad, &plan, options, of),
            }
        }

        fn float_dot_grads(
            lhs: FloatTensor<Self>,
            rhs: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            saved: Saved<Self>,
            plan: Arc<Plan>,
            options: FloatOptions,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            match CubeProduct::new(&lhs.device(), lhs.dtype(), &plan, options).backward::<Self>(&grad, saved) {
                Some((chosen, saved)) => Self::gpu_dot_grads(lhs, rhs, grad, saved, chosen),
                None => reference::float_dot_grads::<Self>(lhs, rhs, grad, &plan, options),
            }
        }

        fn float_in_memory_order(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
            let shape = tensor.shape();
            reference::in_memory_order::<Self>(tensor, shape)
        }
    };
}

impl DotOps for CubeBackend {
    dot_ops!();
}

impl<B: FusionBackend<FusionRuntime: FusionRuntime<FusionDevice = CubeDevice>> + GpuOps> DotOps for Fusion<B> {
    dot_ops!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axes::Axes;

    #[test]
    fn rows_and_normalized_matrices_have_kernels_and_all_else_is_composed() {
        use Operand::{Lhs, Rhs};
        use Pass::{Backward, Forward};
        let gpu = Units { planes: true, plane: 32, most: 256 };
        let without_planes = Units { planes: false, ..gpu };
        let (plain, cosine) = (None, Some(1e-6));
        let rows = |vector| Some(Path::Reduction { vector });
        let matrices = Some(Path::Gemm);
        type Case = (&'static [usize], &'static [usize], (isize, isize), Option<f64>, Units, Pass, Option<Path>);
        let cases: &[Case] = &[
            // Rows.
            (&[5, 64], &[5, 64], (1, 1), cosine, gpu, Forward, rows(Lhs)),
            (&[5, 64], &[5, 64], (1, 1), cosine, without_planes, Backward, rows(Lhs)),
            (&[5, 64], &[5, 64], (1, 1), plain, gpu, Forward, rows(Lhs)),
            (&[5, 64], &[5, 64], (1, 1), plain, without_planes, Forward, None),
            (&[5, 513], &[5, 513], (1, 1), plain, without_planes, Forward, rows(Lhs)),
            (&[1, 1 << 22], &[1, 1 << 22], (1, 1), cosine, gpu, Forward, rows(Lhs)),
            (&[1, (1 << 22) + 1], &[1, (1 << 22) + 1], (1, 1), cosine, gpu, Forward, None),
            // A vector with many, on either side, and in any order of axes.
            (&[5, 64], &[5, 3, 64], (1, 2), cosine, gpu, Forward, rows(Lhs)),
            (&[5, 64, 3], &[5, 64], (1, 1), cosine, gpu, Backward, rows(Rhs)),
            // A vector for all batches, and batches that are broadcast both ways: two sums would meet in a gradient.
            (&[1, 64], &[5, 64], (1, 1), cosine, gpu, Backward, rows(Lhs)),
            (&[5, 64], &[1, 64], (1, 1), cosine, gpu, Backward, rows(Rhs)),
            (&[5, 64], &[1, 3, 64], (1, 2), cosine, gpu, Forward, matrices),
            (&[5, 64], &[1, 3, 64], (1, 2), cosine, gpu, Backward, None),
            // Matrices.
            (&[5, 4, 64], &[5, 3, 64], (2, 2), cosine, gpu, Forward, matrices),
            (&[5, 4, 64], &[5, 3, 64], (2, 2), cosine, gpu, Backward, matrices),
            (&[5, 4, 64], &[5, 3, 64], (2, 2), plain, gpu, Forward, None),
            (&[1, 4, 9000], &[1, 3, 9000], (2, 2), cosine, gpu, Forward, None),
            (&[1, 4, 9000], &[1, 3, 9000], (2, 2), cosine, gpu, Backward, matrices),
            (&[1, 9000, 4], &[1, 3, 4], (2, 2), cosine, gpu, Backward, None),
            // Nothing to compute.
            (&[5, 0], &[5, 0], (1, 1), cosine, gpu, Forward, None),
        ];
        for &(lhs, rhs, axes, normalize, device, pass, expected) in cases {
            let plan = Plan::new(&Axes::from(axes), 1, true, lhs, rhs).unwrap();
            let options = FloatOptions { normalize, output: None };
            let given = choose(&plan, FloatDType::F32, options, device, false, pass);
            assert_eq!(given, expected, "{lhs:?} · {rhs:?} along {axes:?}, {normalize:?}, {device:?}, {pass:?}");
        }
        let plan = Plan::new(&Axes::from(1), 1, true, &[5, 64], &[5, 64]).unwrap();
        let path = |input, output| {
            let options = FloatOptions { normalize: cosine, output };
            choose(&plan, input, options, gpu, false, Forward)
        };
        assert_eq!(path(FloatDType::F16, Some(FloatDType::F32)), rows(Lhs));
        // Stored as f32, computed as whatever the device likes: Burn's to choose.
        assert_eq!(path(FloatDType::Flex32, None), None);
        assert_eq!(path(FloatDType::F32, Some(FloatDType::Flex32)), None);
    }
}

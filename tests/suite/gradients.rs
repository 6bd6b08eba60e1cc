//! Gradients of every pairing against finite differences in f64, and in each lower dtype, layout and side that is recorded against
//! f64, with checkpointing and without: `burn-gradcheck`.

use burn::prelude::*;
use burn::tensor::DType;
use burn_dot::DotConfig;
use burn_gradcheck::{Failure, GradCheck, GradientKind, Report};

use crate::{
    cases::{Case, table},
    device::{backend, device, float_dtypes, is_ieee},
    oracle::Array,
    run::{apply, out_rank, tensor, wave, with_ranks},
};

/// Every dtype, and in every way layout and side that is recorded, with checkpointing and without.
fn check<const L: usize, const R: usize, const O: usize>(
    config: &DotConfig,
    lhs: &Array,
    rhs: &Array,
    in_every_way: bool,
) -> Report {
    let (dot, device) = (config.init(), device());
    let inputs = (tensor::<L>(lhs, DType::F32, &device), tensor::<R>(rhs, DType::F32, &device));
    let forward = |(lhs, rhs): (Tensor<L>, Tensor<R>)| -> Tensor<O> { apply(&dot, lhs, rhs) };
    // Fusion on a GPU may order a sum otherwise from one run to the next.
    let tolerance = if is_ieee() { 0.0 } else { 1e-12 };
    let check = GradCheck::new(&device).nondeterminism_tolerance(tolerance);
    if in_every_way {
        check.check_every_way(forward, inputs)
    } else {
        check.precision(float_dtypes().into_iter().map(Into::into)).check(forward, inputs)
    }
}

fn check_case(case: &Case, normalize: bool) {
    let config = case.config.clone().with_normalize(normalize);
    let (lhs, rhs) = (wave(case.lhs, 0.1), wave(case.rhs, 0.4));
    let ranks = (case.lhs.len(), case.rhs.len(), out_rank(&config, case.lhs, case.rhs));
    // On other backends than flex small operations are slow, and every way of every case takes a minute on ndarray, minutes on llvmpipe:
    // there the long vectors below must do.
    let report = with_ranks!(ranks, check(&config, &lhs, &rhs, backend() == "flex"));
    let name = format!("{:?} · {:?}, {config:?}\n{report}", case.lhs, case.rhs);
    if normalize && case.lhs == [1, 1] {
        // The cosine of single numbers is ±1 wherever they lie: its gradient is zero, and a check of it says that nothing was checked.
        assert_eq!(report.failures, [Failure::Vacuous], "{name}");
        assert!(report.rows.iter().all(|row| row.gradient == GradientKind::Zero), "{name}");
    } else {
        assert!(report.is_ok(), "{name}");
        assert!(report.rows.iter().all(|row| row.gradient == GradientKind::Present), "{name}");
    }
}

#[test]
fn every_pairing_passes_the_gradient_check_in_every_dtype() {
    for case in table() {
        check_case(&case, false);
    }
}

#[test]
fn every_normalized_pairing_passes_the_gradient_check_in_every_dtype() {
    for case in table() {
        check_case(&case, true);
    }
}

#[test]
fn the_gradient_check_sees_a_missing_projection() {
    // What the two tests above would say if the norm's gradient were wrong.
    let device = device();
    let inputs = (tensor::<2>(&wave(&[3, 4], 0.1), DType::F32, &device), tensor::<2>(&wave(&[3, 4], 0.4), DType::F32, &device));
    let norm = |x: &Tensor<2>| x.clone().powf_scalar(2.0).sum_dim(1).sqrt().detach();
    let wrong = |(lhs, rhs): (Tensor<2>, Tensor<2>)| -> Tensor<2> {
        let (l, r) = (norm(&lhs), norm(&rhs));
        apply(&DotConfig::new(1).init(), lhs / l, rhs / r)
    };
    assert!(!GradCheck::new(&device).check(wrong, inputs).is_ok());
}

/// Many terms, of which norms are kept; rows and matrices.
#[test]
fn products_of_long_vectors_pass_the_gradient_check_in_every_way() {
    for normalize in [false, true] {
        let config = DotConfig::new((2, 1)).with_normalize(normalize);
        for [k, m, n] in [[5, 3, 4], [40, 3, 4], [40, 1, 1]] {
            let report = check::<3, 3, 3>(&config, &wave(&[2, m, k], 0.1), &wave(&[2, k, n], 0.4), true);
            assert!(report.is_ok(), "normalize {normalize}, {m} and {n} vectors of {k}\n{report}");
        }
    }
}

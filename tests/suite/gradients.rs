//! Gradients against central differences in f64, which know nothing of any formula.

use burn::tensor::DType;

use crate::{
    cases::{Case, table},
    device::float_dtypes,
    oracle::Array,
    run::{Layout, run, wave},
};

#[test]
fn every_gradient_agrees_with_central_differences() {
    if !float_dtypes().contains(&DType::F64) {
        return; // Differences in f32 prove nothing; the oracle checks the formula there.
    }
    for Case { lhs, rhs, config } in table() {
        for normalize in [false, true] {
            let config = config.clone().with_normalize(normalize);
            let name = format!("{lhs:?} · {rhs:?}, {config:?}");
            let (lhs, rhs) = (wave(lhs, 0.1), wave(rhs, 0.4));
            let cotangent = |shape: &[usize]| wave(shape, 0.9);
            let forward = |lhs: &Array, rhs: &Array| {
                let out = run(&config, DType::F64, Layout::Contiguous, lhs, rhs, &cotangent).out;
                out.data.iter().zip(cotangent(&out.shape).data).map(|(out, c)| out * c).sum::<f64>()
            };
            let given = run(&config, DType::F64, Layout::Contiguous, &lhs, &rhs, &cotangent);
            // A handful of entries of each input; the oracle covers them all.
            for i in (0..lhs.data.len()).step_by(1 + lhs.data.len() / 5) {
                let slope = central(&lhs, i, |x| forward(x, &rhs));
                assert!(
                    (given.grad_lhs.data[i] - slope).abs() < 1e-7,
                    "{name}: grad_lhs {i}: {} {slope}",
                    given.grad_lhs.data[i]
                );
            }
            for i in (0..rhs.data.len()).step_by(1 + rhs.data.len() / 5) {
                let slope = central(&rhs, i, |x| forward(&lhs, x));
                assert!(
                    (given.grad_rhs.data[i] - slope).abs() < 1e-7,
                    "{name}: grad_rhs {i}: {} {slope}",
                    given.grad_rhs.data[i]
                );
            }
        }
    }
}

fn central(x: &Array, i: usize, f: impl Fn(&Array) -> f64) -> f64 {
    let h = f64::EPSILON.cbrt();
    let at = |h: f64| {
        let mut x = x.clone();
        x.data[i] += h;
        f(&x)
    };
    (at(h) - at(-h)) / (2.0 * h)
}

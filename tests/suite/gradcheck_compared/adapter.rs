//! The crate `gradcheck` on Burn: its own adapter is for f32 alone.

use burn::prelude::*;
use burn::tensor::DType;
use gradcheck::Config;

struct Adapter<const D: usize, const F64: bool>;

impl<const D: usize, const F64: bool> gradcheck::Backend for Adapter<D, F64> {
    type Tensor = Tensor<D>;

    fn name() -> &'static str {
        "burn-flex"
    }
    fn from_slice(data: &[f64], shape: &[usize]) -> Tensor<D> {
        let dtype = if F64 { DType::F64 } else { DType::F32 };
        Tensor::from_data(TensorData::new(data.to_vec(), shape.to_vec()), (&Device::flex().autodiff(), dtype))
    }
    fn to_vec(x: &Tensor<D>) -> Vec<f64> {
        x.to_data().iter::<f64>().collect()
    }
    fn forward_sum(f: &dyn Fn(Tensor<D>) -> Tensor<D>, x: &Tensor<D>) -> f64 {
        Self::to_vec(&f(x.clone())).into_iter().sum()
    }
    fn analytic_grad(f: &dyn Fn(Tensor<D>) -> Tensor<D>, x: &Tensor<D>) -> Vec<f64> {
        let x = x.clone().detach().require_grad();
        let grads = f(x.clone()).sum().backward();
        Self::to_vec(&x.grad(&grads).expect("a gradient"))
    }
}

/// What the crate `gradcheck` says of a function of one tensor; nothing where it passes. `None` for a dtype that it does not know.
pub fn by_crate<const D: usize, const O: usize>(x: &Tensor<D>, f: impl Fn(Tensor<D>) -> Tensor<O>) -> Option<Option<String>> {
    // It sums the outputs, of which it wants as many axes as the input has.
    let f = |x: Tensor<D>| f(x).sum().reshape([1; D]);
    let (data, shape): (Vec<f64>, _) = (x.to_data().iter::<f64>().collect(), x.dims());
    let run = || match x.dtype() {
        DType::F64 => Some(gradcheck::gradcheck::<Adapter<D, true>, _>("case", &data, &shape, f, &Config::f64_defaults())),
        DType::F32 => Some(gradcheck::gradcheck::<Adapter<D, false>, _>("case", &data, &shape, f, &Config::default())),
        _ => None,
    };
    // An input without a gradient ends in a panic, which says so.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
        Ok(report) => report.map(|report| (!report.passed()).then(|| report.to_string())),
        Err(panic) => Some(Some(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()))),
    }
}

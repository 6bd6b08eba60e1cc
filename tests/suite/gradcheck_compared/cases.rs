//! The cases: faults in a backward pass, and functions that are right and hard to check.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::{
    Autodiff, Flex,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    ops::FloatTensorOps,
    tensor::FloatTensor,
};
use burn::module::{Module, Param};
use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::{DType, activation::relu};
use burn_gradcheck::GradCheck;

use super::{Table, adapter::by_crate, complaint, crate_names, fault_row, names};
use crate::{
    oracle::Array,
    run::{tensor, wave},
};

fn x<const D: usize>(shape: [usize; D], phase: f64, dtype: DType) -> Tensor<D> {
    tensor(&wave(&shape, phase), dtype, &Device::flex())
}

fn at<const D: usize>(data: impl Into<TensorData>) -> Tensor<D> {
    Tensor::from_data(data, (&Device::flex(), DType::F64))
}

fn row() -> Tensor<1> {
    x([7], 0.3, DType::F64)
}

/// A backward pass: the gradient that arrives, and the slope.
type Pass = fn(FloatTensor<Flex>, FloatTensor<Flex>) -> FloatTensor<Flex>;

/// The chain rule.
fn times(grad: FloatTensor<Flex>, slope: FloatTensor<Flex>) -> FloatTensor<Flex> {
    Flex::float_mul(grad, slope)
}

/// An elementwise operation with the given value and a backward pass of the given slope.
fn planted<const D: usize>(x: Tensor<D>, value: Tensor<D>, slope: Tensor<D>, pass: Pass) -> Tensor<D> {
    #[derive(Debug)]
    struct Planted(Pass);

    impl Backward<Flex, 1> for Planted {
        type State = FloatTensor<Flex>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<Flex>(&ops.node);
            if let [Some(parent)] = ops.parents {
                grads.register::<Flex>(parent.id, (self.0)(grad, ops.state));
            }
        }
    }

    type Ad = Autodiff<Flex, NoCheckpointing>;
    let inner = |x: Tensor<D>| x.detach().try_into_primitive::<Ad>().unwrap().into_primitive();
    let (value, slope) = (inner(value), inner(slope));
    let x = x.try_into_primitive::<Ad>().unwrap();
    let out = match Planted(pass).prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(slope, value),
        OpsKind::UnTracked(prep) => prep.finish(value),
    };
    Tensor::from_primitive::<Ad>(out)
}

fn tanh_slope<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    -x.tanh().square() + 1
}

/// 1, and at one number 1.01.
fn scale(x: &Tensor<1>, place: usize) -> Tensor<1> {
    let scale = Array::from_fn(&x.dims(), |index| if index[0] == place { 1.01 } else { 1.0 });
    tensor(&scale, x.dtype(), &x.device())
}

fn square(x: Tensor<1>, pass: Pass) -> Tensor<1> {
    planted(x.clone(), x.clone() * x.clone(), x * 2, pass)
}

/// The numbers in the order of memory.
fn in_memory(x: &Tensor<2>) -> Tensor<2> {
    let storage = x.clone().try_into_primitive::<Autodiff<Flex>>().unwrap().into_primitive();
    let numbers: Vec<f64> = match x.dtype() {
        DType::F64 => storage.storage::<f64>().to_vec(),
        _ => storage.storage::<f32>().iter().map(|x| f64::from(*x)).collect(),
    };
    tensor(&Array::new(&x.dims(), numbers), x.dtype(), &x.device())
}

pub fn faults(t: &mut Table) {
    let (plain, other) = (x([3, 4], 0.1, DType::F64), x([3, 4], 0.7, DType::F64));
    t.fault(
        "a flipped sign",
        plain.clone(),
        None,
        |x: Tensor<2>| planted(x.clone(), x.clone().tanh(), -tanh_slope(x), times),
        |x| planted(x.clone(), x.clone().tanh(), tanh_slope(x), times),
    );
    t.fault(
        "a missing term of a product rule",
        row(),
        None,
        |x: Tensor<1>| planted(x.clone(), x.clone() * x.clone().sin(), x.clone() * x.cos(), times),
        |x| planted(x.clone(), x.clone() * x.clone().sin(), x.clone().sin() + x.clone() * x.cos(), times),
    );
    t.fault(
        "0.01 % too much",
        plain.clone(),
        None,
        |x: Tensor<2>| planted(x.clone(), x.clone().exp(), x.exp() * 1.0001, times),
        |x| planted(x.clone(), x.clone().exp(), x.exp(), times),
    );
    let product = |x: Tensor<2>, y: Tensor<2>, of_x: Tensor<2>, of_y: Tensor<2>| {
        planted(x.clone(), x.clone() * y.clone(), of_x, times) + planted(y.clone(), y.zeros_like(), of_y, times)
    };
    t.fault_of_two(
        "two gradients swapped",
        (plain.clone(), other.clone()),
        0,
        |x, y| product(x.clone(), y.clone(), x, y),
        |x, y| product(x.clone(), y.clone(), y, x),
    );
    let weights = |x: &Tensor<2>| tensor::<2>(&wave(&[4, 4], 0.5), x.dtype(), &x.device());
    t.fault(
        "a transposed gradient",
        x([4, 4], 0.2, DType::F64),
        None,
        |x: Tensor<2>| planted(x.clone(), x.clone() * weights(&x), weights(&x).transpose(), times).sum(),
        |x| planted(x.clone(), x.clone() * weights(&x), weights(&x), times).sum(),
    );
    let off = |x: Tensor<1>, place| planted(x.clone(), x.clone().sin(), x.clone().cos() * scale(&x, place), times);
    let sin = |x: Tensor<1>| planted(x.clone(), x.clone().sin(), x.cos(), times);
    t.fault("one number of 12 off by 1 %", x([12], 0.1, DType::F64), Some(7), |x| off(x, 7), sin);
    let many = x([10_000], 0.2, DType::F64);
    t.fault("one number of 10,000 off by 1 %", many, Some(7_654), |x| off(x, 7_654).sum(), |x| sin(x).sum());
    t.fault_of_two(
        "an input without its gradient",
        (plain.clone(), other),
        1,
        |x, y| planted(x.clone(), x * y.clone(), y, times),
        |x, y| product(x.clone(), y.clone(), y, x),
    );
    let norm = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt();
    t.fault(
        "a norm without its projection",
        plain.clone(),
        None,
        |x: Tensor<2>| planted(x.clone(), x.clone() / norm(&x), norm(&x).recip().expand([3, 4]), times),
        |x| x.clone() / norm(&x),
    );
    t.fault(
        "NaN at one number",
        at([1.0, 0.0, -2.0]),
        Some(1),
        |x: Tensor<1>| planted(x.clone(), x.clone() * x.clone().abs(), x.clone().abs() * 2 * (x.clone() / x), times),
        |x| planted(x.clone(), x.clone() * x.clone().abs(), x.abs() * 2, times),
    );
    t.fault(
        "a tiny gradient, 1e-12, of the wrong sign",
        plain.clone(),
        None,
        |x: Tensor<2>| planted(x.clone(), x.clone().tanh() * 1e-12, tanh_slope(x) * -1e-12, times),
        |x| planted(x.clone(), x.clone().tanh() * 1e-12, tanh_slope(x) * 1e-12, times),
    );
    t.fault(
        "a constant added",
        row(),
        None,
        |x| square(x, |g, s| Flex::float_add_scalar(times(g, s), 1e-3.into())),
        |x| square(x, times),
    );
    let quadratic: Pass = |g, s| Flex::float_mul(Flex::float_abs(g.clone()), times(g, s));
    t.fault("not linear in the cotangent", row(), None, |x| square(x, quadratic), |x| square(x, times));
    let unsteady: Pass = |g, s| {
        static CALLS: AtomicUsize = AtomicUsize::new(1);
        Flex::float_mul_scalar(times(g, s), (1.0 + 1e-9 * CALLS.fetch_add(1, Ordering::Relaxed) as f64).into())
    };
    t.fault("another gradient at each call, by 1e-9", row(), None, |x| square(x, unsteady), |x| square(x, times));
    t.fault(
        "strides ignored",
        plain,
        None,
        |x: Tensor<2>| planted(x.clone(), x.clone() * x.clone(), in_memory(&x) * 2, times),
        |x| planted(x.clone(), x.clone() * x.clone(), x * 2, times),
    );
    t.fault(
        "digits lost in f32 only",
        x([7], 0.3, DType::F32),
        None,
        |x: Tensor<1>| planted(x.clone(), -x.clone().cos(), (x.sin() + 1e5) - 1e5, times),
        |x| planted(x.clone(), -x.clone().cos(), x.sin(), times),
    );
    let factor = |x: &Tensor<1>| if x.dtype() == DType::BF16 { 1.5 } else { 1.0 };
    t.fault(
        "a factor of 1.5 in bf16 only",
        x([7], 0.3, DType::BF16),
        None,
        |x: Tensor<1>| planted(x.clone(), x.clone().exp(), x.clone().exp() * factor(&x), times),
        |x| planted(x.clone(), x.clone().exp(), x.exp(), times),
    );
    one_parameter_of_four(t);
    t.not_there("a wrong second derivative");
    t.not_there("a wrong sign in forward mode");
}

/// Two layers, as in compare.py.
#[derive(Module, Debug)]
struct Layers {
    w1: Param<Tensor<2>>,
    b1: Param<Tensor<1>>,
    w2: Param<Tensor<2>>,
    b2: Param<Tensor<1>>,
}

impl Layers {
    fn forward(&self, x: Tensor<2>, sign: f64) -> Tensor<2> {
        let b1 = self.b1.val();
        self.forward_with(x, planted(b1.clone(), b1.clone(), b1.ones_like() * sign, times))
    }

    fn forward_with(&self, x: Tensor<2>, b1: Tensor<1>) -> Tensor<2> {
        let inner = (x.matmul(self.w1.val()) + b1.unsqueeze()).tanh();
        inner.matmul(self.w2.val()) + self.b2.val().unsqueeze()
    }
}

fn one_parameter_of_four(t: &mut Table) {
    let device = Device::flex().autodiff();
    let layers = Layers {
        w1: Param::from_tensor(x([4, 3], 0.1, DType::F64).to_device(&device)),
        b1: Param::from_tensor(x([3], 0.4, DType::F64).to_device(&device)),
        w2: Param::from_tensor(x([3, 2], 0.7, DType::F64).to_device(&device)),
        b2: Param::from_tensor(x([2], 1.0, DType::F64).to_device(&device)),
    };
    let batch = x::<2>([2, 4], 0.9, DType::F64).to_device(&device);
    let check = GradCheck::new(&device);
    let run = |sign: f64| check.check_module(&layers, |m: &Layers| m.forward(batch.clone().cast(m.w1.val().dtype()), sign));
    let (wrong, right) = (run(-1.0), run(1.0));
    let ours = fault_row(complaint(&wrong), complaint(&right), |_| names(&wrong, (1, None)));
    let name = "one parameter of four of a model";
    t.ours.insert(name.into(), ours);
    // A function of one tensor: the parameter that is wrong.
    let of_b1 = |sign: f64| {
        let f =
            |b1: Tensor<1>| layers.forward_with(batch.clone(), planted(b1.clone(), b1.clone(), b1.ones_like() * sign, times));
        by_crate(&x([3], 0.4, DType::F64), f).flatten()
    };
    t.theirs.insert(name.into(), fault_row(of_b1(-1.0), of_b1(1.0), |said| crate_names(said, (1, None))));
}

pub fn right_but_hard(t: &mut Table) {
    t.right("1 / x at 5e-6", at([5e-6, 0.3, -2.0]), |x: Tensor<1>| x.recip());
    t.right("log x at 1e-8", at([1e-8, 0.3, 2.0]), |x: Tensor<1>| x.log());
    t.right("log x from 1e-30 to 1e20 in one tensor", at([1e-30, 1e-3, 2.0, 1e20]), |x: Tensor<1>| x.log());
    t.right("sin(1e8 x)", at([0.1, 0.2, 0.3]), |x: Tensor<1>| (x * 1e8).sin());
    t.right("x² at 1e8", at([1e8, 1.0000001e8, -1e8]), |x: Tensor<1>| x.clone() * x);
    t.right("x / max(‖x‖, 1e-6) just above the floor", at([[9e-7, -1.2e-6]]), |x: Tensor<2>| {
        x.clone() / x.square().sum_dim(1).sqrt().clamp_min(1e-6)
    });
    let zero_among = [wave(&[5], 0.1).data, vec![0.0], wave(&[6], 0.7).data].concat();
    t.right("relu with one zero among 12", at(TensorData::new(zero_among, [12])), |x: Tensor<1>| relu(x));
    let dropout = DropoutConfig::new(0.4).init();
    t.right("dropout", x([3, 4], 0.1, DType::F64), |x: Tensor<2>| dropout.forward(x));
    t.right("sin x in f32", x([7], 0.3, DType::F32), |x: Tensor<1>| x.sin());
    t.right("exp x in bf16", x([7], 0.3, DType::BF16), |x: Tensor<1>| x.exp());
}

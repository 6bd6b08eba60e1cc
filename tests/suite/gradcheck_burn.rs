//! No false alarm: the differentiable operations and the modules of Burn, checked at random inputs. What fails is Burn's own fault,
//! examined by hand, and stands in `BURN_IS_WRONG` and in the table of the crate's README.

use burn::linalg::{cosine_similarity, det, l2_norm, matvec, outer, trace};
use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::{attention::*, conv::*, gru::*, loss::*, pool::*, transformer::*, *};
use burn::prelude::*;
use burn::tensor::{DType, activation::*, module, ops::*};
use burn_gradcheck::{Failure, GradCheck, Report};

use crate::{
    device::turn_to_draw,
    run::{tensor, wave},
};

/// What is examined here is Burn, on its CPU backend; the checker itself runs on every device with `Dot`'s gradients.
fn device() -> Device {
    Device::flex()
}

/// Where Burn 0.22.1 is wrong, with the reason; each has a test of its own below.
const BURN_IS_WRONG: &[&str] = &["hard_sigmoid"];

/// Results by name.
#[derive(Default)]
struct Table(Vec<(&'static str, Report)>);

fn x<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    tensor(&wave(&shape, 0.35), DType::F32, &device())
}

fn y<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    tensor(&wave(&shape, 0.85), DType::F32, &device())
}

fn positive<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    x(shape).abs() + 0.5
}

impl Table {
    fn one<const D: usize, const O: usize>(&mut self, name: &'static str, at: Tensor<D>, f: impl Fn(Tensor<D>) -> Tensor<O>) {
        self.0.push((name, GradCheck::new(&device()).check(f, at)));
    }

    fn two<const D: usize, const E: usize, const O: usize>(
        &mut self,
        name: &'static str,
        at: (Tensor<D>, Tensor<E>),
        f: impl Fn(Tensor<D>, Tensor<E>) -> Tensor<O>,
    ) {
        self.0.push((name, GradCheck::new(&device()).check(|(x, y)| f(x, y), at)));
    }

    fn module<M: Module + Clone, const D: usize, const O: usize>(
        &mut self,
        name: &'static str,
        module: M,
        input: Tensor<D>,
        f: impl Fn(&M, Tensor<D>) -> Tensor<O>,
    ) {
        let input = input.to_device(&device().autodiff());
        let report = GradCheck::new(&device()).check_module(&module, |module| f(module, input.clone().cast(dtype_of(module))));
        self.0.push((name, report));
    }

    fn finish(self, what: &str, at_least: usize, readme: &str) {
        let wrong: Vec<_> = self.0.iter().filter(|(name, report)| report.is_ok() == BURN_IS_WRONG.contains(name)).collect();
        for (name, report) in &wrong {
            println!("{name}: {report}");
        }
        assert!(wrong.is_empty(), "{:?}", wrong.iter().map(|(name, _)| name).collect::<Vec<_>>());
        let f64 = self.0.iter().filter(|(_, report)| report.dtype == DType::F64).count();
        println!("{} {what} checked, {f64} of them in f64", self.0.len());
        assert!(self.0.len() >= at_least);
        // A handful of modules hold f32 numbers of their own (buffers, initial states), and are checked in f32.
        assert!(f64 + 4 >= self.0.len(), "only {f64} in f64");
        let missing: Vec<_> =
            self.0.iter().map(|(name, _)| name).filter(|name| !readme.contains(&format!("`{name}`"))).collect();
        assert!(
            missing.is_empty(),
            "not in the README's table: `{}`",
            missing.iter().map(|n| n.to_string()).collect::<Vec<_>>().join("`, `")
        );
    }
}

/// The dtype of a module's first float parameter: that of the check.
fn dtype_of<M: Module>(module: &M) -> DType {
    struct First(Option<DType>);
    impl ModuleVisitor for First {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.get_or_insert(param.val().dtype());
        }
    }
    let mut first = First(None);
    module.visit(&mut first);
    first.0.expect("a module with parameters")
}

const README: &str = include_str!("../../crates/burn-gradcheck/README.md");

#[test]
fn operations_of_burn_raise_no_false_alarm() {
    let mut t = Table::default();
    let m = [3, 4];
    t.one("abs", x(m), |x| x.abs());
    t.one("acos", x(m) * 0.5, |x| x.acos());
    t.one("acosh", positive(m) + 1, |x| x.acosh());
    t.one("asin", x(m) * 0.5, |x| x.asin());
    t.one("asinh", x(m), |x| x.asinh());
    t.one("atan", x(m), |x| x.atan());
    t.one("atanh", x(m) * 0.5, |x| x.atanh());
    t.one("cos", x(m), |x| x.cos());
    t.one("cosh", x(m), |x| x.cosh());
    t.one("erf", x(m), |x| x.erf());
    t.one("exp", x(m), |x| x.exp());
    t.one("log", positive(m), |x| x.log());
    t.one("log1p", positive(m), |x| x.log1p());
    t.one("neg", x(m), |x| -x);
    t.one("powf_scalar", positive(m), |x| x.powf_scalar(1.7));
    t.one("powi_scalar", x(m), |x| x.powi_scalar(3));
    t.one("recip", positive(m), |x| x.recip());
    t.one("sin", x(m), |x| x.sin());
    t.one("sinh", x(m), |x| x.sinh());
    t.one("sqrt", positive(m), |x| x.sqrt());
    t.one("square", x(m), |x| x.square());
    t.one("tan", x(m) * 0.5, |x| x.tan());
    t.one("tanh", x(m), |x| x.tanh());
    t.one("clamp", x(m), |x| x.clamp(-0.5, 0.9));
    t.one("clamp_min", x(m), |x| x.clamp_min(0.1));
    t.one("clamp_max", x(m), |x| x.clamp_max(0.4));
    t.one("add_scalar", x(m), |x| x + 3.5);
    t.one("mul_scalar", x(m), |x| x * -2.5);
    t.one("div_scalar", x(m), |x| x / 3.0);

    t.two("add", (x(m), y([1, 4])), |x, y| x + y);
    t.two("sub", (x([3, 1]), y(m)), |x, y| x - y);
    t.two("mul", (x(m), y([1, 4])), |x, y| x * y);
    t.two("div", (x(m), positive([3, 1])), |x, y| x / y);
    t.two("atan2", (x(m), positive(m)), |x, y| x.atan2(y));
    t.two("hypot", (x(m), y(m)), |x, y| x.hypot(y));
    t.two("powf", (positive(m), y(m)), |x, y| x.powf(y));
    t.two("max_pair", (x(m), y(m)), |x, y| x.max_pair(y));
    t.two("min_pair", (x(m), y(m)), |x, y| x.min_pair(y));
    t.two("matmul", (x([2, 3, 4]), y([1, 4, 5])), |x, y| x.matmul(y));
    t.two("dot", (x([5]), y([5])), |x, y| x.dot(y));
    t.two("cross", (x([4, 3]), y([4, 3])), |x, y| x.cross(y, 1));
    t.two("outer", (x([4]), y([3])), outer::<1, 2, _>);
    t.two("matvec", (x([3, 4]), y([4])), matvec::<2, 1, _>);

    t.one("sum", x(m), |x| x.sum());
    t.one("sum_dim", x(m), |x| x.sum_dim(0));
    t.one("mean", x(m), |x| x.mean());
    t.one("mean_dim", x(m), |x| x.mean_dim(1));
    t.one("prod", positive(m), |x| x.prod());
    t.one("prod_dim", positive(m), |x| x.prod_dim(1));
    t.one("max", x(m), |x| x.max());
    t.one("max_dim", x(m), |x| x.max_dim(1));
    t.one("min_dim", x(m), |x| x.min_dim(0));
    t.one("max_abs_dim", x(m), |x| x.max_abs_dim(1));
    t.one("var", x(m), |x| x.var(1));
    t.one("cumsum", x(m), |x| x.cumsum(1));
    t.one("cumprod", positive(m), |x| x.cumprod(1));
    t.one("sort", x(m), |x| x.sort(1));
    t.one("topk", x(m), |x| x.topk(2, 1));
    t.one("trace", x([3, 3]), trace::<2, 1>);
    t.one("det", x([1, 3, 3]), det::<3, 2, 1>);
    t.one("l2_norm", x(m), |x| l2_norm(x, 1));
    t.two("cosine_similarity", (x(m), y(m)), |x, y| cosine_similarity(x, y, 1, None));

    t.one("reshape", x(m), |x| x.reshape([2, 6]) * 2);
    t.one("transpose", x(m), |x| x.transpose().exp());
    t.one("permute", x([2, 3, 4]), |x| x.permute([2, 0, 1]).exp());
    t.one("flip", x(m), |x| x.flip([1]).exp());
    t.one("slice", x(m), |x| x.slice([1..3, 0..2]).exp());
    t.two("slice_assign", (x(m), y([2, 2])), |x, y| x.slice_assign([1..3, 0..2], y).exp());
    t.one("narrow", x(m), |x| x.narrow(1, 1, 2).exp());
    t.one("expand", x([3, 1]), |x| x.expand([3, 4]).exp());
    t.one("repeat_dim", x(m), |x| x.repeat_dim(1, 3).exp());
    t.two("cat", (x(m), y([2, 4])), |x, y| Tensor::cat(vec![x, y], 0).exp());
    t.two("stack", (x(m), y(m)), |x, y| Tensor::stack::<3>(vec![x, y], 1).exp());
    t.one("pad", x(m), |x| x.pad((1, 2, 1, 0), 0.5).exp());
    t.one("tril", x(m), |x| x.tril(0).exp());
    t.one("unfold", x([9]), |x| x.unfold::<2, _>(0, 3, 2).exp());
    let index = |data: &[i32]| Tensor::<1, Int>::from_data(data, &device());
    let select = index(&[2, 0, 2]);
    t.one("select", x(m), |x| x.select(0, select.clone()).exp());
    let gather = index(&[0, 3, 1, 1, 2, 0]).reshape([3, 2]);
    t.one("gather", x(m), |x| x.gather(1, gather.clone()).exp());
    t.two("scatter", (x(m), y([3, 2])), |x, y| x.scatter(1, gather.clone(), y, IndexingUpdateOp::Add).exp());
    let mask = x(m).greater_elem(0.3);
    t.two("mask_where", (x(m), y(m)), |x, y| x.mask_where(mask.clone(), y).exp());
    t.one("mask_fill", x(m), |x| x.mask_fill(mask.clone(), 2.0).exp());

    t.one("relu", x(m), relu);
    t.one("leaky_relu", x(m), |x| leaky_relu(x, 0.1));
    t.two("prelu", (x(m), y([1])), prelu);
    t.one("gelu", x(m), gelu);
    t.one("gelu_approximate", x(m), gelu_approximate);
    t.one("sigmoid", x(m), sigmoid);
    t.one("log_sigmoid", x(m), log_sigmoid);
    // Who hands over f64 wants f64.
    t.one("hard_sigmoid", x(m).cast(DType::F64), |x| hard_sigmoid(x, 0.2, 0.5));
    t.one("silu", x(m), silu);
    t.one("mish", x(m), mish);
    t.one("softplus", x(m), |x| softplus(x, 1.5));
    t.one("softsign", x(m), softsign);
    t.one("elu", x(m), |x| elu(x, 1.2));
    t.one("selu", x(m), selu);
    t.one("glu", x(m), |x| glu(x, 1));
    t.one("softmax", x(m), |x| softmax(x, 1));
    t.one("log_softmax", x(m), |x| log_softmax(x, 1));
    t.one("quiet_softmax", x(m), |x| quiet_softmax(x, 1));
    t.one("tanhshrink", x(m), tanhshrink);

    t.two("conv1d", (x([2, 3, 7]), y([4, 3, 3])), |x, w| module::conv1d(x, w, None, ConvOptions::new([1], [1], [1], 1)));
    t.two("conv2d", (x([1, 2, 5, 6]), y([3, 2, 3, 2])), |x, w| {
        module::conv2d(x, w, None, ConvOptions::new([2, 1], [1, 0], [1, 1], 1))
    });
    t.two("conv_transpose2d", (x([1, 2, 3, 4]), y([2, 3, 2, 3])), |x, w| {
        module::conv_transpose2d(x, w, None, ConvTransposeOptions::new([2, 1], [0, 1], [1, 0], [1, 1], 1))
    });
    t.one("avg_pool1d", x([1, 2, 7]), |x| module::avg_pool1d(x, AvgPoolOptions::new([3]).with_stride([2])));
    t.one("max_pool2d", x([1, 2, 5, 6]), |x| module::max_pool2d(x, MaxPoolOptions::new([2, 3]).with_stride([1, 2])));
    t.one("adaptive_avg_pool2d", x([1, 2, 5, 6]), |x| module::adaptive_avg_pool2d(x, [2, 3]));
    t.finish("operations", 60, README);
}

#[test]
fn modules_of_burn_raise_no_false_alarm() {
    let _turn = turn_to_draw();
    let d = device().autodiff();
    let mut t = Table::default();
    t.module("Linear", LinearConfig::new(3, 4).init(&d), x([2, 3]), |m, x| m.forward(x));
    t.module("Conv1d", Conv1dConfig::new(2, 3, 3).init(&d), x([2, 2, 6]), |m, x| m.forward(x));
    t.module("Conv2d", Conv2dConfig::new([2, 3], [2, 3]).init(&d), x([1, 2, 4, 5]), |m, x| m.forward(x));
    t.module("Conv3d", Conv3dConfig::new([1, 2], [2, 2, 2]).init(&d), x([1, 1, 3, 4, 3]), |m, x| m.forward(x));
    t.module("ConvTranspose1d", ConvTranspose1dConfig::new([2, 3], 3).init(&d), x([1, 2, 4]), |m, x| m.forward(x));
    t.module("ConvTranspose2d", ConvTranspose2dConfig::new([2, 3], [2, 3]).init(&d), x([1, 2, 3, 4]), |m, x| m.forward(x));
    t.module("BatchNorm", BatchNormConfig::new(3).init(&d), x([4, 3, 2]), |m, x| m.forward(x));
    t.module("GroupNorm", GroupNormConfig::new(2, 4).init(&d), x([2, 4, 3]), |m, x| m.forward(x));
    t.module("InstanceNorm", InstanceNormConfig::new(3).init(&d), x([2, 3, 5]), |m, x| m.forward(x));
    t.module("LayerNorm", LayerNormConfig::new(5).init(&d), x([2, 5]), |m, x| m.forward(x));
    t.module("RmsNorm", RmsNormConfig::new(5).init(&d), x([2, 5]), |m, x| m.forward(x));
    t.module("PRelu", PReluConfig::new().init(&d), x([2, 5]), |m, x| m.forward(x));
    t.module("SwiGlu", SwiGluConfig::new(3, 4).init(&d), x([2, 3]), |m, x| m.forward(x));
    t.module("Gru", GruConfig::new(3, 4, true).init(&d), x([2, 3, 3]), |m, x| m.forward(x, None));
    t.module("Lstm", LstmConfig::new(3, 4, true).init(&d), x([2, 3, 3]), |m: &Lstm, x| m.forward(x, None).0);
    t.module("BiLstm", BiLstmConfig::new(3, 2, true).init(&d), x([2, 3, 3]), |m, x| m.forward(x, None).0);
    t.module("Rnn", RnnConfig::new(3, 4, true).init(&d), x([2, 3, 3]), |m, x| m.forward(x, None).0);
    t.module("MultiHeadAttention", MultiHeadAttentionConfig::new(4, 2).with_dropout(0.3).init(&d), x([2, 3, 4]), |m, x| {
        m.forward(MhaInput::self_attn(x)).context
    });
    t.module("PositionWiseFeedForward", PositionWiseFeedForwardConfig::new(4, 6).init(&d), x([2, 3, 4]), |m, x| m.forward(x));
    t.module("TransformerEncoder", TransformerEncoderConfig::new(4, 6, 2, 2).init(&d), x([2, 3, 4]), |m, x| {
        m.forward(TransformerEncoderInput::new(x))
    });
    let tokens = Tensor::<2, Int>::from_data([[0, 2], [1, 2]], &d);
    t.module("Embedding", EmbeddingConfig::new(4, 3).init(&d), x([1, 1]), |m, _| m.forward(tokens.clone()));

    // Modules without parameters, with respect to their input.
    t.one("Dropout", x([3, 5]), |x| DropoutConfig::new(0.4).init().forward(x));
    t.one("MaxPool1d", x([1, 2, 7]), |x| MaxPool1dConfig::new(3).init().forward(x));
    t.one("AvgPool2d", x([1, 2, 4, 5]), |x| AvgPool2dConfig::new([2, 2]).init().forward(x));
    t.two("MseLoss", (x([3, 4]), y([3, 4])), |x, y| MseLoss::new().forward(x, y, Reduction::Mean));
    t.two("HuberLoss", (x([3, 4]), y([3, 4])), |x, y| HuberLossConfig::new(0.7).init().forward(x, y, Reduction::Mean));
    t.two("PoissonNllLoss", (x([3, 4]), positive([3, 4])), |x, y| {
        PoissonNllLossConfig::new().init().forward(x, y, Reduction::Mean)
    });
    let classes = Tensor::<1, Int>::from_data([1, 0, 3], &d);
    t.one("CrossEntropyLoss", x([3, 4]), |x| CrossEntropyLossConfig::new().init(&x.device()).forward(x, classes.clone()));
    t.finish("modules", 20, README);
}

/// The backward pass says one thing, the differences another, at the place named.
fn disagrees(report: &Report) -> bool {
    report.failures.iter().any(|failure| matches!(failure, Failure::Mismatch { .. } | Failure::NotFinite { .. }))
}

#[test]
fn burns_hard_sigmoid_rounds_f64_to_f32_under_autodiff() {
    let at = Tensor::<1>::from_data([0.3f64], (&device().autodiff(), DType::F64));
    let out = hard_sigmoid(at.clone(), 0.2, 0.5);
    let exact: f64 = 0.2 * 0.3 + 0.5;
    let off = (out.into_scalar::<f64>() - exact).abs();
    assert!(off > 1e-9, "an f64 result with f32's digits: off by {off:e}");
}

#[test]
fn burns_sqrt_of_a_square_has_no_gradient_at_zero() {
    // ‖x‖·x is smooth at zero; the root's infinity meets a zero.
    let zero = Tensor::<2>::zeros([1, 2], &device());
    let report = GradCheck::new(&device()).check(|x: Tensor<2>| x.clone().square().sum_dim(1).sqrt() * x, zero);
    assert!(disagrees(&report), "{report}");
}

#[test]
fn burns_cosine_similarity_has_no_gradient_at_a_zero_vector() {
    let (zero, y) = (Tensor::<2>::zeros([1, 2], &device()), y([1, 2]));
    let report = GradCheck::new(&device())
        .check(|(x, y): (Tensor<2>, Tensor<2>)| cosine_similarity(x, y, 1, Some(1e-3)), (zero.clone(), y.clone()));
    assert!(disagrees(&report), "{report}");
    // Dot's has: the function is linear below the floor.
    let dot = burn_dot::DotConfig::new(1).with_normalize(true).with_epsilon(1e-3).init();
    let ours = |(x, y): (Tensor<2>, Tensor<2>)| -> Tensor<2> { dot.forward(x, y) };
    GradCheck::new(&device()).check(ours, (zero, y)).assert_ok();
}

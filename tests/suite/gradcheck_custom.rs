//! Custom backward passes with a fault, of dtype, shape, precision or law: each is caught and named.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::backend::{
    Autodiff, Backend, Flex, TensorMetadata,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    ops::FloatTensorOps,
    tensor::FloatTensor,
};
use burn::prelude::*;
use burn::tensor::{DType, FloatDType};
use burn_gradcheck::{Failure, Report};

use crate::{
    gradcheck_faults::{check, x},
    oracle::Array,
    run::{tensor, value_of},
};

/// x², with a backward pass chosen by the caller: it gets the gradient, x, and says what to register.
pub fn custom(x: Tensor<1>, fault: Fault) -> Tensor<1> {
    #[derive(Debug)]
    struct Square(Fault);

    impl<B: Backend> Backward<B, 1> for Square {
        type State = FloatTensor<B>;

        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            static CALLS: AtomicUsize = AtomicUsize::new(0);
            let grad = grads.consume::<B>(&ops.node);
            let right = B::float_mul(grad, B::float_mul_scalar(ops.state, 2.0.into()));
            let wrong = match self.0 {
                Fault::None => right,
                Fault::DType => B::float_cast(right, FloatDType::F32),
                Fault::Shape => B::float_reshape(right, Shape::new([1, 3])),
                Fault::Short => B::float_sum(right),
                Fault::Long => B::float_cat(vec![right.clone(), right], 0),
                Fault::HalfFactor => match FloatDType::from(right.dtype()) {
                    FloatDType::BF16 => B::float_mul_scalar(right, 1.5.into()),
                    _ => right,
                },
                Fault::Random => B::float_mul_scalar(right, (1.0 + 1e-9 * CALLS.fetch_add(1, Ordering::Relaxed) as f64).into()),
                Fault::Constant => B::float_add_scalar(right, 1e-3.into()),
                Fault::Quadratic => B::float_mul(right.clone(), B::float_abs(right)),
            };
            if let [Some(parent)] = ops.parents {
                grads.register::<B>(parent.id, wrong);
            }
        }
    }

    type Ad = Autodiff<Flex, NoCheckpointing>;
    let x = x.try_into_primitive::<Ad>().unwrap();
    let square = |x: FloatTensor<Flex>| Flex::float_mul(x.clone(), x);
    let out = match Square(fault).prepare::<NoCheckpointing>([x.node()]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(x.primitive().clone(), square(x.into_primitive())),
        OpsKind::UnTracked(prep) => prep.finish(square(x.into_primitive())),
    };
    Tensor::from_primitive::<Ad>(out)
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    None,
    DType,
    Shape,
    Short,
    Long,
    HalfFactor,
    Random,
    Constant,
    Quadratic,
}

fn faulty(fault: Fault) -> Report {
    check().check(move |x: Tensor<1>| custom(x, fault), x([3], 0.3))
}

#[test]
fn a_custom_backward_pass_that_is_right() {
    faulty(Fault::None).assert_ok();
}

#[test]
fn a_gradient_of_another_dtype() {
    let report = faulty(Fault::DType);
    let expected = Failure::DType { input: "input 0".into(), expected: DType::F64, found: DType::F32 };
    assert!(report.failures.contains(&expected), "{report}");
}

#[test]
fn a_gradient_of_another_shape() {
    let report = faulty(Fault::Shape);
    let expected = Failure::Shape { input: "input 0".into(), expected: vec![3], found: vec![1, 3] };
    assert!(report.failures.contains(&expected), "{report}");
    // A reduction forgotten or done twice: another count of numbers.
    for (fault, found) in [(Fault::Short, 1), (Fault::Long, 6)] {
        let report = faulty(fault);
        let expected = Failure::Shape { input: "input 0".into(), expected: vec![3], found: vec![found] };
        assert_eq!(report.failures, [expected], "{report}");
    }
}

#[test]
fn a_factor_in_bf16_only() {
    let at = x([3], 0.3);
    let report = check().precision([FloatDType::BF16]).check(|x: Tensor<1>| custom(x, Fault::HalfFactor), at.clone());
    assert!(matches!(report.failures[..], [Failure::Precision { dtype: DType::BF16, .. }]), "{report}");
    check().precision([FloatDType::BF16]).check(|x: Tensor<1>| custom(x, Fault::None), at).assert_ok();
}

#[test]
fn a_gradient_that_is_missing_or_of_another_shape_in_f32_only() {
    let detached = |(x, y): (Tensor<1>, Tensor<1>)| x * if y.dtype() == DType::F32 { y.detach() } else { y };
    let report = check().check(detached, (x([3], 0.3), x([3], 0.5)));
    assert!(matches!(&report.failures[..], [Failure::Detached { input, .. }] if input == "input 1 in F32"), "{report}");
    let short = |x: Tensor<1>| {
        let fault = if x.dtype() == DType::F32 { Fault::Short } else { Fault::None };
        custom(x, fault)
    };
    let report = check().check(short, x([3], 0.3));
    let expected = Failure::Shape { input: "input 0 in F32".into(), expected: vec![3], found: vec![1] };
    assert_eq!(report.failures, [expected], "{report}");
}

#[test]
fn a_nondeterministic_backward_pass() {
    let report = faulty(Fault::Random);
    assert!(report.failures.iter().any(|f| matches!(f, Failure::Nondeterministic { .. })), "{report}");
}

#[test]
fn a_backward_pass_that_adds_a_constant() {
    let report = faulty(Fault::Constant);
    assert!(
        report.failures.iter().any(|f| matches!(f, Failure::ZeroCotangent { gradient, .. } if *gradient == 1e-3)),
        "{report}"
    );
}

#[test]
fn a_backward_pass_that_is_not_linear() {
    let report = faulty(Fault::Quadratic);
    assert!(report.failures.iter().any(|f| matches!(f, Failure::NotLinear { .. })), "{report}");
}

#[test]
fn a_backward_pass_that_ignores_strides() {
    // Reads its input's bytes in memory order.
    let wrong = |x: Tensor<2>| {
        let storage = x.clone().try_into_primitive::<Autodiff<Flex>>().unwrap().into_primitive();
        let bytes: Vec<f64> = match x.dtype() {
            DType::F64 => storage.storage::<f64>().to_vec(),
            _ => storage.storage::<f32>().iter().map(|x| f64::from(*x)).collect(),
        };
        let memory = tensor::<2>(&Array::new(&x.dims(), bytes), x.dtype(), &x.device());
        value_of(x.clone() * x.clone(), x * memory * 2)
    };
    let report = check().check(wrong, x([3, 4], 0.2));
    assert!(report.failures.iter().any(|f| matches!(f, Failure::Layout { .. })), "{report}");
}

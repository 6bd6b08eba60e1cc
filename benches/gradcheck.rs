//! How long a gradient check takes. `cargo bench --profile dev --bench gradcheck` shares its build with run and test.

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn_gradcheck::GradCheck;

#[derive(Module, Debug)]
struct Perceptron {
    first: Linear,
    second: Linear,
}

/// `Linear → ReLU → Linear` with 1,000 parameters, (25·30 + 30) + (30·7 + 7) = 997, and its 8 × 25 inputs.
#[divan::bench(sample_count = 20)]
fn linear_relu_linear_of_1000_parameters(bencher: divan::Bencher) {
    let device = Device::flex();
    device.seed(0);
    let (first, second) = (LinearConfig::new(25, 30).init(&device), LinearConfig::new(30, 7).init(&device));
    let module = Perceptron { first, second };
    let x = Tensor::<2>::random([8, 25], burn::tensor::Distribution::Default, &device);
    let check = GradCheck::new(&device);
    let run = || {
        check.check_module_with(&module, x.clone(), |module, x| {
            module.second.forward(burn::tensor::activation::relu(module.first.forward(x)))
        })
    };
    run().assert_ok();
    bencher.bench(run);
}

fn main() {
    divan::main();
}

//! Checks the gradients of a module that a user wrote, then of one with a fault, and shows both reports.
//!
//! ```sh
//! cargo run --example check_gradients
//! ```

use std::process::ExitCode;

use burn::nn::{Linear, LinearConfig};
use burn::prelude::*;
use burn_dot::{Dot, DotConfig};
use burn_gradcheck::GradCheck;

/// Queries attend to keys by their cosine, sharpened by a learned temperature.
#[derive(Module, Debug)]
struct CosineAttention {
    query: Linear,
    key: Linear,
    temperature: burn::module::Param<Tensor<1>>,
    scores: Dot,
}

impl CosineAttention {
    fn new(size: usize, device: &Device) -> Self {
        Self {
            query: LinearConfig::new(size, size).init(device),
            key: LinearConfig::new(size, size).init(device),
            temperature: burn::module::Param::from_data([2.0], device),
            scores: DotConfig::new(2).with_normalize(true).init(),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let scores: Tensor<3> = self.scores.forward(self.query.forward(x.clone()), self.key.forward(x.clone()));
        let weights = burn::tensor::activation::softmax(scores * self.temperature.val().unsqueeze(), 2);
        weights.matmul(x)
    }

    /// The same with a fault that is easy to make: the keys are detached, "to save memory".
    fn forward_with_a_fault(&self, x: Tensor<3>) -> Tensor<3> {
        let key = self.key.forward(x.clone()).detach();
        let scores: Tensor<3> = self.scores.forward(self.query.forward(x.clone()), key);
        let weights = burn::tensor::activation::softmax(scores * self.temperature.val().unsqueeze(), 2);
        weights.matmul(x)
    }
}

fn main() -> ExitCode {
    let device = Device::flex();
    device.seed(1);
    let module = CosineAttention::new(4, &device.clone().autodiff());
    let x = Tensor::<3>::random([2, 3, 4], burn::tensor::Distribution::Default, &device);
    let check = GradCheck::new(&device);
    let right = check.check_module_with(&module, x.clone(), |module, x| module.forward(x));
    println!("As written:\n{right}");
    let wrong = check.check_module_with(&module, x, |module, x| module.forward_with_a_fault(x));
    println!("With its keys detached:\n{wrong}");

    if !right.is_ok() || wrong.is_ok() {
        eprintln!("error: the module as written must pass, and the detached keys be found");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

//! The function under test as a function of numbers, forward and backward.

use std::sync::{Mutex, PoisonError};

use burn_core::tensor::{DType, Device, Tensor};

use crate::subject::{Build, Gradient, Layout, Made, Output, Outputs, Subject};

/// The function under test in one dtype, from numbers to numbers. As an object, so that the checker is compiled once.
pub(crate) trait Evaluate {
    fn dtype(&self) -> DType;
    /// The outputs: their numbers, and their forms.
    fn outputs(&self, x: &[Vec<f64>], how: How) -> (Vec<f64>, Vec<Form>);
    /// The gradients for a cotangent; `None` where none arrives. Gradients of all inputs are recorded unless `how` says of which.
    fn backward(&self, x: &[Vec<f64>], cotangent: &[f64], how: How) -> Vec<Option<Gradient>>;
}

/// What is known of an output beside its numbers.
#[derive(Clone, Debug)]
pub(crate) struct Form {
    pub dtype: DType,
    pub shape: Vec<usize>,
}

/// How the inputs of one evaluation are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    Plain,
    /// Lying in memory in another way, all of them.
    Laid(Layout),
    /// Lying in memory in another way, one of them.
    OneLaid(usize, Layout),
    /// Recording gradients, also where only the outputs are asked for.
    Tracked,
    /// Recording the gradient of one input alone.
    Only(usize),
}

impl How {
    fn layout(self, leaf: usize) -> Layout {
        match self {
            Self::Laid(layout) => layout,
            Self::OneLaid(one, layout) if one == leaf => layout,
            _ => Layout::Contiguous,
        }
    }

    /// Whether the gradient of an input is asked for.
    pub(crate) fn records(self, leaf: usize) -> bool {
        !matches!(self, Self::Only(one) if one != leaf)
    }
}

/// One evaluation at a time: a device's seed belongs to the whole process.
static TURN: Mutex<()> = Mutex::new(());

/// A subject and a function of it.
pub(crate) struct Function<'a, S, F> {
    pub subject: &'a S,
    pub f: &'a F,
    pub device: &'a Device,
    pub dtype: DType,
    pub seed: u64,
}

impl<S: Subject, O: Outputs, F: Fn(S::Argument) -> O> Function<'_, S, F> {
    fn argument(&self, x: &[Vec<f64>], how: How, tracked: bool) -> S::Argument {
        let made = |(leaf, values)| Made { values, layout: how.layout(leaf), tracked: tracked && how.records(leaf) };
        let mut leaves = x.iter().map(Vec::as_slice).enumerate().map(made);
        self.subject.build(&mut leaves, &Build { device: self.device, dtype: self.dtype })
    }

    fn run(&self, argument: S::Argument) -> Vec<Output> {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        self.device.seed(self.seed);
        let mut outputs = Vec::new();
        (self.f)(argument).each(&mut |output| outputs.push(output));
        outputs
    }
}

impl<S: Subject, O: Outputs, F: Fn(S::Argument) -> O> Evaluate for Function<'_, S, F>
where
    S::Argument: Clone,
{
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn outputs(&self, x: &[Vec<f64>], how: How) -> (Vec<f64>, Vec<Form>) {
        let outputs = self.run(self.argument(x, how, matches!(how, How::Tracked | How::Only(_))));
        let numbers = outputs.iter().flat_map(|output| output.values.iter().copied()).collect();
        (numbers, outputs.into_iter().map(|output| Form { dtype: output.dtype, shape: output.shape }).collect())
    }

    fn backward(&self, x: &[Vec<f64>], cotangent: &[f64], how: How) -> Vec<Option<Gradient>> {
        let mut gradients: Vec<Option<Gradient>> = x.iter().map(|_| None).collect();
        // Outputs of one dtype are added up and go backward together, as in training. Those of another dtype do not add up,
        // but their gradients do; a backward pass consumes the graph, so the function runs anew for each dtype.
        let mut done: Vec<DType> = Vec::new();
        loop {
            let argument = self.argument(x, how, true);
            let mut rest = cotangent;
            let mut sum: Option<Tensor<1>> = None;
            let mut dtype = None;
            for output in self.run(argument.clone()) {
                let (cotangent, later) = rest.split_at(output.values.len());
                rest = later;
                if !output.tracked || done.contains(&output.dtype) || *dtype.get_or_insert(output.dtype) != output.dtype {
                    continue;
                }
                let weighted = (output.weighted)(cotangent);
                sum = Some(match sum {
                    Some(sum) => sum + weighted,
                    None => weighted,
                });
            }
            let (Some(sum), Some(dtype)) = (sum, dtype) else { return gradients };
            done.push(dtype);
            let found = self.subject.gradients(&argument, &sum.backward());
            gradients = gradients.into_iter().zip(found).map(add).collect();
        }
    }
}

fn add((a, b): (Option<Gradient>, Option<Gradient>)) -> Option<Gradient> {
    match (a, b) {
        (Some(mut a), Some(b)) => {
            a.values.iter_mut().zip(&b.values).for_each(|(a, b)| *a += b);
            Some(a)
        }
        (a, b) => a.or(b),
    }
}

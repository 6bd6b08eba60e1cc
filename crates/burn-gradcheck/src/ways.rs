//! Every way to run a custom operation: layouts, one-sided tracking and gradient checkpointing, in every dtype.

use burn_core::tensor::{DType, FloatDType};

use crate::{
    GradCheck,
    answer::Answer,
    check::quietly,
    failure::Failure,
    function::{Evaluate, Function, How},
    numbers::round_to,
    report::Report,
    subject::{Arguments, Computed, Inputs, Layout, Leaf, Outputs},
};

/// A way to run the function under test.
struct Way<'a> {
    name: String,
    function: &'a dyn Evaluate,
    how: How,
}

impl GradCheck {
    /// Checks an operation with a custom backward pass in every way that its callers may run it.
    ///
    /// What [`check`](Self::check) does, then in every float dtype of the device (or those of [`precision`](Self::precision)):
    ///
    /// | | |
    /// |---|---|
    /// | layouts | each input, and all together, permuted and as a window of a larger tensor; each input expanded along each of its axes |
    /// | one-sided tracking | the gradient of each input alone, the others not recorded |
    /// | gradient checkpointing | inputs that are results of an operation, kept, and forgotten and computed anew; all recorded, and each alone |
    ///
    /// Outputs and gradients must be those of contiguous inputs that are all recorded, in the highest dtype at the same numbers, but
    /// for what rounding and conditioning explain. A failure names the way.
    ///
    /// # Panics
    ///
    /// Only where `f` does as [`check`](Self::check) runs it; other panics are failures.
    ///
    /// ```
    /// use burn::prelude::*;
    /// use burn_gradcheck::GradCheck;
    ///
    /// let device = Device::flex();
    /// let (x, y) = (Tensor::<2>::from_data([[0.3, -1.2]], &device), Tensor::<2>::from_data([[0.7], [0.1]], &device));
    /// let operation = |(x, y): (Tensor<2>, Tensor<2>)| x.matmul(y);
    /// GradCheck::new(&device).check_every_way(operation, (x, y)).assert_ok();
    /// ```
    pub fn check_every_way<I: Inputs, O: Outputs>(&self, f: impl Fn(I) -> O, inputs: I) -> Report {
        let leaves = inputs.leaves();
        let device = &self.device;
        let on_the_device = |dtype: &FloatDType| device.supports_dtype(DType::from(*dtype));
        let lower = [FloatDType::F32, FloatDType::F16, FloatDType::BF16].into_iter().filter(on_the_device);
        let check = if self.precision.is_some() { self.clone() } else { self.clone().precision(lower) };
        let mut report = check.check(&f, inputs.clone());
        let dtypes = check.lower_dtypes(report.dtype, report.dtype);
        if !report.is_ok() {
            report.notes.push("no other way was run: what is wrong already would only be repeated".into());
            return report;
        }
        let (plain, computed) = (Arguments(inputs.clone()), Computed(inputs));
        let from_computed = |(_, inputs): (I, I)| f(inputs);
        let checkpointing = device.clone().gradient_checkpointing();
        let high = Function { subject: &plain, f: &f, device, dtype: report.dtype, seed: self.seed };
        let mut ways = 0;
        for dtype in [report.dtype].into_iter().chain(dtypes) {
            let seed = self.seed;
            let plain = Function { subject: &plain, f: &f, device, dtype, seed };
            let kept = Function { subject: &computed, f: &from_computed, device, dtype, seed };
            let anew = Function { subject: &computed, f: &from_computed, device: &checkpointing, dtype, seed };
            ways += self.laid_out(&high, &plain, &leaves, &mut report);
            ways += self.recorded(&high, [&plain, &kept, &anew], &leaves, &mut report);
        }
        report.notes.push(format!(
            "run in {ways} ways: inputs permuted, sliced and expanded, gradients of each alone, with checkpointing"
        ));
        report
    }

    /// Inputs that lie in memory in other ways; how many.
    fn laid_out(&self, high: &dyn Evaluate, plain: &dyn Evaluate, leaves: &[Leaf], report: &mut Report) -> usize {
        let mut ways = Vec::new();
        for (layout, word) in [(Layout::Permuted, "permuted"), (Layout::Sliced, "sliced")] {
            ways.push((format!("all inputs {word}"), How::Laid(layout)));
            let alone = leaves.iter().enumerate().filter(|_| leaves.len() > 1);
            ways.extend(alone.map(|(which, leaf)| (format!("{} {word}", leaf.name), How::OneLaid(which, layout))));
        }
        let ways: Vec<_> = ways.into_iter().map(|(name, how)| Way { name, function: plain, how }).collect();
        let x: Vec<Vec<f64>> = leaves.iter().map(|leaf| round_to(plain.dtype(), &leaf.values)).collect();
        let mut count = ways.len();
        self.look(high, &ways, x.clone(), leaves, report);
        for (which, leaf) in leaves.iter().enumerate() {
            for axis in (0..leaf.shape.len()).filter(|&axis| leaf.shape[axis] > 1) {
                let mut x = x.clone();
                x[which] = repeated(&x[which], &leaf.shape, axis);
                let name = format!("{} expanded along axis {axis}", leaf.name);
                self.look(
                    high,
                    &[Way { name, function: plain, how: How::OneLaid(which, Layout::Expanded(axis)) }],
                    x,
                    leaves,
                    report,
                );
                count += 1;
            }
        }
        count
    }

    /// Gradients of each input alone, and inputs that are results of an operation, kept or computed anew; how many ways.
    fn recorded(
        &self,
        high: &dyn Evaluate,
        [plain, kept, anew]: [&dyn Evaluate; 3],
        leaves: &[Leaf],
        report: &mut Report,
    ) -> usize {
        let functions = [(plain, ""), (kept, "computed inputs"), (anew, "inputs computed anew by gradient checkpointing")];
        let mut ways = Vec::new();
        for (function, name) in functions {
            if !name.is_empty() {
                ways.push(Way { name: name.into(), function, how: How::Tracked });
            }
            let comma = if name.is_empty() { "" } else { ", " };
            let alone = leaves.iter().enumerate().filter(|_| leaves.len() > 1);
            ways.extend(alone.map(|(which, leaf)| Way {
                name: format!("{name}{comma}the gradient of {} alone", leaf.name),
                function,
                how: How::Only(which),
            }));
        }
        let x = leaves.iter().map(|leaf| round_to(plain.dtype(), &leaf.values)).collect();
        self.look(high, &ways, x, leaves, report);
        ways.len()
    }

    /// Runs each way at the same numbers, and adds what is wrong.
    fn look(&self, high: &dyn Evaluate, ways: &[Way], x: Vec<Vec<f64>>, leaves: &[Leaf], report: &mut Report) {
        let Some(first) = ways.first() else { return };
        let answer: Answer = self.answer(high, first.function.dtype(), x);
        let allowed = self.outputs_allowed(high, &answer);
        for Way { name, function, how } in ways {
            let at = format!("{name}, in {:?}", answer.dtype);
            let run = || (function.outputs(&answer.x, *how).0, function.backward(&answer.x, &answer.cotangent, *how));
            match quietly(run) {
                Ok((outputs, gradients)) => {
                    let verdict = self.judge(&at, &answer, &allowed, leaves, (&outputs, &gradients), *how);
                    report.failures.extend(verdict.failures);
                }
                Err(reason) => report.failures.push(Failure::Panics { at, reason }),
            }
        }
    }
}

/// The numbers of a tensor, those at the first index of an axis in place of the others along it.
fn repeated(x: &[f64], shape: &[usize], axis: usize) -> Vec<f64> {
    let stride: usize = shape[axis + 1..].iter().product();
    (0..x.len()).map(|i| x[i - i / stride % shape[axis] * stride]).collect()
}

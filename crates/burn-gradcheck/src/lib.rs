#![doc = include_str!("../README.md")]

mod answer;
mod check;
mod comparison;
mod devices;
mod failure;
mod formula;
mod function;
mod hint;
mod laws;
mod numbers;
mod numeric;
mod precision;
mod report;
mod resolution;
mod step;
mod subject;
mod ways;

pub use check::{GradCheck, self_test};
pub use devices::{Agreement, Compare, DeviceReport, DeviceRow};
pub use failure::{Failure, Hint};
pub use report::{GradCheckError, GradientKind, Precision, Report, Row};
pub use step::Step;
pub use subject::{Input, Inputs, Outputs};

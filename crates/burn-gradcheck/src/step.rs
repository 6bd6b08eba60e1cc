//! [`Step`]: how far the differences move an element.

use burn_core::tensor::DType;

use crate::numbers::{epsilon, power_of_two};

/// How far the differences move an element to each side, at most.
///
/// Where they do not converge, smaller steps follow by themselves; a larger one than asked for is never taken, which keeps the
/// function within its domain.
///
/// ```
/// use burn::prelude::*;
/// use burn_gradcheck::{GradCheck, Step};
///
/// let device = Device::flex();
/// let (x, scale) = (Tensor::<1>::from_data([3e-5, 0.2], &device), Tensor::<1>::from_data([250.0], &device));
/// let f = |(x, scale): (Tensor<1>, Tensor<1>)| x.log() * scale;
/// let check = |step: Step| GradCheck::new(&device).step(step).check(f, (x.clone(), scale.clone()));
///
/// check(Step::Automatic).assert_ok();
/// check(Step::Absolute(1e-6)).assert_ok();
/// check(Step::Relative(1e-4)).assert_ok();
/// check(Step::PerInput(vec![Step::Relative(1e-4), Step::Absolute(0.5)])).assert_ok();
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Step {
    /// From the scale of each element and from what the differences say: `ε^⅓·max(1, |x|)` first, then `ε^⅓·|x|`, then from
    /// wide to narrow. The default.
    #[default]
    Automatic,
    /// An absolute step.
    Absolute(f64),
    /// So many times the element's size; for an element of zero, times the smallest size in its tensor that is not zero (1 where all
    /// are).
    Relative(f64),
    /// One for each float input or parameter, in the order of the report's rows; those without one are automatic. Not nested.
    PerInput(Vec<Step>),
}

impl Step {
    pub(crate) fn is_valid(&self) -> bool {
        match self {
            Self::Automatic => true,
            Self::Absolute(step) | Self::Relative(step) => *step > 0.0 && step.is_finite(),
            Self::PerInput(steps) => steps.iter().all(|step| step.is_valid() && !matches!(step, Self::PerInput(_))),
        }
    }

    /// The steps for the elements of one leaf.
    pub(crate) fn steps(&self, leaf: usize, x: &[f64], dtype: DType) -> Steps {
        let smallest = x.iter().map(|x| x.abs()).filter(|x| *x > 0.0).fold(f64::INFINITY, f64::min);
        let smallest = if smallest.is_finite() { smallest } else { 1.0 };
        let size = |x: &f64| if *x == 0.0 { smallest } else { x.abs() };
        let cube_root = power_of_two(epsilon(dtype).cbrt());
        let (usual, octaves): (Vec<f64>, i32) = match self {
            Self::PerInput(steps) => return steps.get(leaf).unwrap_or(&Self::Automatic).steps(0, x, dtype),
            Self::Absolute(step) => (vec![*step; x.len()], 0),
            Self::Relative(step) => (x.iter().map(|x| step * size(x)).collect(), 0),
            // Begin 2⁸ above the usual step in f64; f32 has less room.
            Self::Automatic => {
                let octaves = if epsilon(dtype) < 1e-10 { 8 } else { 4 };
                (x.iter().map(|x| cube_root * power_of_two(x.abs().max(1.0))).collect(), octaves)
            }
        };
        let lowest = if epsilon(dtype) < 1e-10 { 2f64.powi(-90) } else { 2f64.powi(-40) };
        let bottom = x.iter().map(|x| if *x == 0.0 { lowest } else { 16.0 * epsilon(dtype) * x.abs() });
        let in_steps = |sizes: &mut dyn Iterator<Item = f64>| sizes.zip(&usual).map(|(size, usual)| size / usual).collect();
        let (own, bottom) = (in_steps(&mut x.iter().map(size)), in_steps(&mut bottom.into_iter()));
        let narrow = (*self == Self::Automatic).then_some(cube_root);
        Steps { usual, octaves, narrow, own, bottom }
    }
}

/// The steps for the elements of one leaf: the usual one of each, and lengths as multiples of it.
#[derive(Clone, Debug)]
pub(crate) struct Steps {
    usual: Vec<f64>,
    /// How many doublings above the usual step the widest is.
    octaves: i32,
    /// The second step to try, as a part of the element's size; none where steps were asked for.
    narrow: Option<f64>,
    /// The size of each element, or for zero the smallest in its tensor.
    own: Vec<f64>,
    /// Below this a step is a few units in the last place, or, for an element of zero, below every scale that is likely.
    bottom: Vec<f64>,
}

/// So many steps are halved, and so many more quartered, before those that follow shrink by 16.
const ROWS: usize = 12;

/// Directions are narrowed down to elements, which are looked at longer.
const DIRECTION_ROWS: usize = 20;

impl Steps {
    /// The usual step of an element.
    pub(crate) fn of(&self, element: usize) -> f64 {
        self.usual[element]
    }

    /// The size of a single element, as a multiple of its usual step; directions have no size of their own.
    pub(crate) fn size(&self, elements: &[usize]) -> f64 {
        if let [i] = elements { self.own[*i] } else { f64::INFINITY }
    }

    /// The steps to try first, as multiples of the usual one.
    pub(crate) fn usual(&self, elements: &[usize]) -> impl Iterator<Item = f64> {
        let narrow = self.narrow.map(|part| part * power_of_two(self.size(elements))).filter(|narrow| *narrow < 1.0);
        core::iter::once(1.0).chain(narrow)
    }

    /// The steps from wide to narrow, as multiples of the usual one.
    pub(crate) fn down(&self, elements: &[usize]) -> impl Iterator<Item = f64> {
        let (rows, bottom) = match elements {
            [i] => (usize::MAX, self.bottom[*i]),
            _ => (DIRECTION_ROWS, 0.0),
        };
        let mut step = 2f64.powi(self.octaves);
        (0..rows)
            .map(move |row| {
                let here = step;
                step /= match row + 1 {
                    row if row < ROWS => 2.0,
                    row if row < 2 * ROWS => 4.0,
                    _ => 16.0,
                };
                here
            })
            .take_while(move |step| *step >= bottom)
    }
}

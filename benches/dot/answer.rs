//! The right output and gradients, by the definition in f64, which every engine must give before it is timed.

use rayon::prelude::*;

use crate::cells::{Case, EPSILON, Side};

/// A sum, and the sum of the absolute values of its terms.
type Scaled = (f64, f64);

/// Output and gradients of a case, the output's gradient being all ones.
pub struct Answer {
    expected: [Vec<Scaled>; 3],
    /// The most terms of any sum.
    terms: usize,
}

/// Normalised vectors of one input, over all batches, with their norms (1 where nothing is to be normalised).
struct Vectors {
    vectors: Vec<Vec<f64>>,
    norms: Vec<f64>,
}

impl Vectors {
    fn new(side: &Side, data: &[f64], normalize: bool) -> Self {
        let vector = |index: usize| -> Vec<f64> {
            let (batch, free) = (index / side.free(), index % side.free());
            (0..side.k).map(|k| data[side.index(batch, free, k)]).collect()
        };
        let mut vectors: Vec<_> = (0..side.batch * side.free()).into_par_iter().map(vector).collect();
        let norm = |x: &Vec<f64>| if normalize { dot(x, x).0.sqrt().max(EPSILON) } else { 1.0 };
        let norms: Vec<f64> = vectors.par_iter().map(norm).collect();
        vectors.par_iter_mut().zip(&norms).for_each(|(x, norm)| x.iter_mut().for_each(|x| *x /= norm));
        Vectors { vectors, norms }
    }

    /// The vectors of each batch with their norms.
    fn batches<'a>(&'a self, side: &Side) -> impl IndexedParallelIterator<Item = (&'a [Vec<f64>], &'a [f64])> {
        self.vectors.par_chunks(side.free()).zip(self.norms.par_chunks(side.free()))
    }
}

impl Answer {
    pub fn new(case: &Case, inputs: &[Vec<u8>; 2]) -> Self {
        let (left, right) = case.sides();
        let u = Vectors::new(&left, &case.dtype.decode(&inputs[0]), case.normalize);
        let v = Vectors::new(&right, &case.dtype.decode(&inputs[1]), case.normalize);
        let others = |index: usize| &v.vectors[index / left.free() * right.free()..][..right.free()];
        let out =
            u.vectors.par_iter().enumerate().flat_map_iter(|(index, u)| others(index).iter().map(|v| dot(u, v))).collect();
        let gradients = [gradient(&left, &u, &right, &v, case.normalize), gradient(&right, &v, &left, &u, case.normalize)];
        let [grad_lhs, grad_rhs] = gradients;
        Answer { expected: [out, grad_lhs, grad_rhs], terms: left.k.max(left.free()).max(right.free()) }
    }

    /// Compares what an engine gave; engines without gradients give the output only.
    pub fn check(&self, case: &Case, given: &[Vec<u8>]) -> Result<(), String> {
        let tolerance = case.dtype.tolerance(self.terms);
        let names = ["output", "gradient of lhs", "gradient of rhs"];
        for ((name, expected), given) in names.into_iter().zip(&self.expected).zip(given) {
            let given = case.dtype.decode(given);
            if given.len() != expected.len() {
                return Err(format!("wrong: {name} has {} elements, not {}", given.len(), expected.len()));
            }
            let error = |(given, &(value, scale)): (&f64, &Scaled)| (given - value).abs() / (scale + f64::MIN_POSITIVE);
            // NaN counts as infinitely wrong; `f64::max` would drop it.
            let worst = |a: f64, b: f64| if b.is_nan() { f64::INFINITY } else { b.max(a) };
            let worst = given.par_iter().zip(expected).map(error).reduce(|| 0.0, |a, b| worst(worst(0.0, a), b));
            if worst > tolerance {
                return Err(format!("wrong: error of {name} {worst:.1e} of its absolute terms, allowed {tolerance:.1e}"));
            }
        }
        Ok(())
    }
}

/// Pairwise, so that a long sum keeps its digits in f64 too.
fn dot(u: &[f64], v: &[f64]) -> Scaled {
    if u.len() <= 128 {
        return u.iter().zip(v).fold((0.0, 0.0), |(sum, scale), (u, v)| (sum + u * v, scale + (u * v).abs()));
    }
    let half = u.len() / 2;
    let (low, high) = (dot(&u[..half], &v[..half]), dot(&u[half..], &v[half..]));
    (low.0 + high.0, low.1 + high.1)
}

/// The gradient of one input, as it lies in memory. As the output's gradient is all ones, what reaches each vector of a batch is
/// the sum `w` of the other input's vectors: the gradient is `w`, or `(w − u (u·w)) / ‖x‖`.
fn gradient(side: &Side, own: &Vectors, other_side: &Side, other: &Vectors, normalize: bool) -> Vec<Scaled> {
    let batches: Vec<Vec<Vec<Scaled>>> = (own.batches(side), other.batches(other_side))
        .into_par_iter()
        .map(|((vectors, norms), (others, _))| {
            let sum = sum(others);
            let project = |(u, norm): (&Vec<f64>, &f64)| if normalize { projected(u, *norm, &sum) } else { sum.clone() };
            vectors.par_iter().zip(norms).map(project).collect()
        })
        .collect();
    let mut gradient = vec![(0.0, 0.0); side.batch * side.free() * side.k];
    for (batch, vectors) in batches.iter().enumerate() {
        for (free, vector) in vectors.iter().enumerate() {
            vector.iter().enumerate().for_each(|(k, &value)| gradient[side.index(batch, free, k)] = value);
        }
    }
    gradient
}

fn sum(vectors: &[Vec<f64>]) -> Vec<Scaled> {
    let mut sum = vec![(0.0, 0.0); vectors[0].len()];
    for vector in vectors {
        sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum = (sum.0 + x, sum.1 + x.abs()));
    }
    sum
}

fn projected(u: &[f64], norm: f64, sum: &[Scaled]) -> Vec<Scaled> {
    let (values, scales): (Vec<f64>, Vec<f64>) = sum.iter().copied().unzip();
    let magnitudes: Vec<f64> = u.iter().map(|u| u.abs()).collect();
    let (along, scale) = (dot(u, &values).0, dot(&magnitudes, &scales).0);
    let each = u.iter().zip(sum).map(|(u, w)| ((w.0 - u * along) / norm, (w.1 + u.abs() * scale) / norm));
    each.collect()
}

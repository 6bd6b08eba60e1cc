//! What the mismatches of an input have in common.

use crate::{failure::Hint, subject::Leaf};

/// What the mismatches look like.
pub(crate) fn hint(
    leaf: &Leaf,
    analytic: &[f64],
    numeric: &[Option<f64>],
    wrong: &[usize],
    others: Vec<(String, Vec<Option<f64>>)>,
) -> Hint {
    const SAME: f64 = 1e-4;
    let pairs: Vec<(f64, f64)> =
        analytic.iter().zip(numeric).filter_map(|(&analytic, numeric)| numeric.map(|numeric| (analytic, numeric))).collect();
    let size = pairs.iter().fold(0.0f64, |size, (a, n)| size.max(a.abs()).max(n.abs()));
    let same = |a: f64, b: f64| (a - b).abs() <= SAME * size;
    if wrong.iter().all(|&i| analytic[i] == 0.0) {
        return Hint::Zero;
    }
    // The factor that fits best, and whether it fits all.
    let factor = pairs.iter().map(|(a, n)| a * n).sum::<f64>() / pairs.iter().map(|(_, n)| n * n).sum::<f64>();
    if pairs.iter().all(|&(a, n)| same(a, factor * n)) && (pairs.len() > 1 || leaf.values.len() == 1) {
        return if (factor + 1.0).abs() < SAME { Hint::SignFlipped } else { Hint::Factor(factor) };
    }
    if wrong.len() == 1 {
        return Hint::OneElement;
    }
    let is = |other: &dyn Fn(usize) -> Option<f64>| {
        (0..analytic.len()).all(|i| other(i).is_none_or(|other| same(analytic[i], other)))
            && (0..analytic.len()).any(|i| other(i).is_some())
    };
    if let [.., rows, columns] = leaf.shape[..] {
        // The gradient laid out as (columns, rows) but read as (rows, columns), or transposed where it is square.
        let block = rows * columns;
        let read = |i: usize| {
            let (offset, inside) = (i / block * block, i % block);
            numeric[offset + inside % rows * columns + inside / rows]
        };
        if block > 0 && is(&read) {
            return Hint::Transposed;
        }
    }
    if let Some((name, _)) = others.iter().find(|(_, other)| is(&|i| other[i])) {
        return Hint::GradientOf(name.clone());
    }
    // Along the input: in each row of the last axis the difference is a multiple of the input.
    let width = leaf.shape.last().copied().unwrap_or(1).max(1);
    let along = |row: usize| {
        let range = row * width..(row + 1) * width;
        let known = range.filter_map(|i| numeric[i].map(|n| (leaf.values[i], analytic[i] - n)));
        let (mut xx, mut xd, mut dd) = (0.0, 0.0, 0.0);
        for (x, d) in known {
            (xx, xd, dd) = (xx + x * x, xd + x * d, dd + d * d);
        }
        dd <= SAME * SAME * size * size || xd * xd >= (1.0 - SAME) * xx * dd
    };
    let all_known = numeric.iter().all(Option::is_some);
    if width > 1 && all_known && (0..leaf.values.len() / width).all(along) {
        return Hint::AlongInput;
    }
    Hint::Term
}

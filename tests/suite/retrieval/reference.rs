//! Every score in f64, and a sort: what a search must give. It shares nothing with the code under test.

use std::cmp::Ordering;

/// A row of hits: scores and items, the best first, -∞ and -1 where no item is left.
pub type Row = Vec<(f64, i64)>;

pub fn top_k(
    queries: &[Vec<f64>],
    items: &[Vec<f64>],
    cosine: bool,
    k: usize,
    excluded: impl Fn(usize, usize) -> bool,
) -> Vec<Row> {
    let row = |q: usize| {
        let kept = (0..items.len()).filter(|&item| !excluded(q, item));
        let mut row: Row = kept.map(|item| (score(&queries[q], &items[item], cosine), item as i64)).collect();
        row.sort_by(|a, b| order(a.0, b.0)); // stable: ties stay in the order of their indices
        row.resize(k.min(items.len()).max(row.len()), (f64::NEG_INFINITY, -1));
        row.truncate(k.min(items.len()));
        row
    };
    (0..queries.len()).map(row).collect()
}

pub fn score(x: &[f64], y: &[f64], cosine: bool) -> f64 {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| a * b).sum::<f64>();
    let norm = |x: &[f64]| {
        let norm = dot(x, x).sqrt();
        if norm < 1e-6 { 1e-6 } else { norm }
    };
    if cosine { dot(x, y) / (norm(x) * norm(y)) } else { dot(x, y) }
}

/// Higher scores first, NaN last.
fn order(a: f64, b: f64) -> Ordering {
    a.is_nan().cmp(&b.is_nan()).then(b.partial_cmp(&a).unwrap_or(Ordering::Equal))
}

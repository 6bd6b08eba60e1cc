//! One direction of the in-batch softmax, with its gradients in closed form. Tensors here have no autodiff.

use burn_core::tensor::{Int, Tensor};
use burn_dot::DotConfig;

use crate::{error::RetrievalError, scan::ranges, similarity::all_pairs};

/// What the cross-entropy of each query depends on beside the scores. There are `B` queries and `C ≥ B` candidates; the first `B`
/// candidates are the positives.
pub(super) struct Terms {
    /// `(1, C)`: the logarithm of each candidate's sampling probability, which is subtracted from its scores.
    pub log_q: Option<Tensor<2>>,
    /// `(C)`: candidates with the id of a query's positive are none of its negatives.
    pub ids: Option<Tensor<1, Int>>,
    /// `(B, 1)`
    pub weights: Tensor<2>,
}

/// A loss and its gradients, summed over queries.
pub(super) struct Part {
    pub loss: Tensor<1>,
    /// None where they were not asked for.
    pub grads: Option<(Tensor<2>, Tensor<2>)>,
}

/// ```text
/// Σᵢ wᵢ·ℓᵢ,   ℓᵢ = ln(1 + Σⱼ exp(sᵢⱼ − sᵢᵢ)),   sᵢⱼ = xᵢ·vⱼ − ln qⱼ,   j ≠ i without accidental hits
/// ```
///
/// The positive is kept apart from the sum, so that neither a small loss nor a small gradient is the difference of large numbers. Scores
/// and their mask exist for `chunk` queries at a time; nothing else has their size.
pub(super) fn cross_entropy(
    x: Tensor<2>,
    v: Tensor<2>,
    terms: &Terms,
    chunk: usize,
    with_grads: bool,
) -> Result<Part, RetrievalError> {
    let [queries, columns] = x.dims();
    let candidates = v.dims()[0];
    let (device, dtype) = (x.device(), x.dtype());
    let negatives_by_rows = DotConfig::new((1, 0)).with_batch_dims(0).init();
    let queries_by_negatives = DotConfig::new(0).with_batch_dims(0).init();

    let mut loss = Tensor::<1>::zeros([1], (&device, dtype));
    let mut grad_x = Vec::new();
    let mut grad_v = Tensor::<2>::zeros([candidates, columns], (&device, dtype));
    let mut grad_positives = Vec::new();
    for rows in ranges(queries, chunk) {
        let (x, positives) = (x.clone().slice(rows.clone()), v.clone().slice(rows.clone()));
        let weights = terms.weights.clone().slice(rows.clone());
        let mut scores: Tensor<2> = all_pairs(dtype).try_forward(x.clone(), v.clone())?;
        if let Some(log_q) = &terms.log_q {
            scores = scores - log_q.clone();
        }
        let own = Tensor::<1, Int>::arange(rows.start as i64..rows.end as i64, &device);
        let positive = scores.clone().gather(1, own.clone().unsqueeze_dim(1));
        let ids = terms.ids.clone().unwrap_or_else(|| Tensor::arange(0..candidates as i64, &device));
        let id = ids.clone().slice(rows.clone()).unsqueeze_dim::<2>(1);
        let none_of_its_negatives =
            id.expand([rows.len(), candidates]).equal(ids.unsqueeze::<2>().expand([rows.len(), candidates]));
        let scores = scores.mask_fill(none_of_its_negatives, f64::NEG_INFINITY);

        let largest = scores.clone().max_dim(1).max_pair(positive.clone());
        let negatives = (scores - largest.clone()).exp();
        let of_negatives = negatives.clone().sum_dim(1);
        let of_positive = (positive.clone() - largest.clone()).exp();
        // Where the positive is the largest this is ln(1 + Σ), good for small sums.
        let each = ln_1p(of_negatives.clone() + (of_positive.clone() - 1.0)) + (largest - positive);
        loss = loss + (each * weights.clone()).sum();
        if with_grads {
            let factor = weights / (of_negatives.clone() + of_positive);
            let negatives = negatives * factor.clone();
            let of_positive = of_negatives * factor;
            let toward: Tensor<2> = negatives_by_rows.try_forward(negatives.clone(), v.clone())?;
            grad_x.push(toward - positives * of_positive.clone());
            grad_positives.push(x.clone() * of_positive);
            grad_v = grad_v + queries_by_negatives.try_forward::<2, 2, 2, _>(negatives, x)?;
        }
    }
    let grads = with_grads.then(|| {
        if candidates > queries {
            grad_positives.push(Tensor::zeros([candidates - queries, columns], (&device, dtype)));
        }
        (Tensor::cat(grad_x, 0), grad_v - Tensor::cat(grad_positives, 0))
    });
    Ok(Part { loss, grads })
}

/// `ln(1 + x)`, with the digits of a small `x`: on CubeCL's devices Burn's `log1p` adds 1 first, and loses them.
fn ln_1p(x: Tensor<2>) -> Tensor<2> {
    let sum = x.clone() + 1.0;
    let rounded = sum.clone() - 1.0;
    let is_lost = rounded.clone().equal_elem(0.0);
    // The sum's rounding is in the logarithm and in the difference alike (Kahan).
    (x.clone() * sum.log() / rounded).mask_where(is_lost, x)
}

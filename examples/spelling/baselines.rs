//! What a reader would try without training: TF-IDF of character n-grams, and edit distance.

use std::collections::HashMap;

use rayon::prelude::*;

use crate::data::{Pair, Spellings};

/// Recall at 1 and at 10.
pub type Recall = [f64; 2];

/// Cosine of TF-IDF weights of character bigrams and trigrams, `^` and `$` at the ends.
pub fn tf_idf(spellings: &Spellings, sample: &[Pair]) -> Recall {
    let words: Vec<HashMap<String, f64>> = spellings.words.iter().map(|word| counts(word)).collect();
    let mut documents: HashMap<&str, usize> = HashMap::new();
    words.iter().flat_map(HashMap::keys).for_each(|gram| *documents.entry(gram).or_default() += 1);
    let total = (1 + words.len()) as f64;
    // As scikit-learn has it.
    let weight = |gram: &str, count: f64| count * ((total / (1 + documents.get(gram).copied().unwrap_or(0)) as f64).ln() + 1.0);
    let weigh = |counts: &HashMap<String, f64>| {
        let weights: Vec<(String, f64)> = counts.iter().map(|(gram, &count)| (gram.clone(), weight(gram, count))).collect();
        let norm = weights.iter().map(|(_, weight)| weight * weight).sum::<f64>().sqrt();
        weights.into_iter().map(move |(gram, weight)| (gram, weight / norm))
    };
    let mut holders: HashMap<String, Vec<(usize, f64)>> = HashMap::new();
    for (word, counts) in words.iter().enumerate() {
        weigh(counts).for_each(|(gram, weight)| holders.entry(gram).or_default().push((word, weight)));
    }
    recall(sample, |typo| {
        let mut scores = vec![0.0; words.len()];
        for (gram, weight) in weigh(&counts(typo)) {
            holders.get(&gram).into_iter().flatten().for_each(|&(word, other)| scores[word] += weight * other);
        }
        scores
    })
}

/// The least Damerau–Levenshtein distance; ties in the order of the alphabet.
pub fn edit_distance(spellings: &Spellings, sample: &[Pair]) -> Recall {
    recall(sample, |typo| {
        let length = typo.chars().count();
        let distance = |word: &String| {
            // No word is nearer than their lengths are, and none beyond 4 is asked for.
            let least = word.chars().count().abs_diff(length);
            if least > 4 { least } else { strsim::damerau_levenshtein(typo, word) }
        };
        spellings.words.iter().map(|word| -(distance(word) as f64)).collect()
    })
}

fn recall(sample: &[Pair], scores: impl Fn(&str) -> Vec<f64> + Sync) -> Recall {
    let ranks: Vec<usize> = sample
        .par_iter()
        .map(|pair| {
            let scores = scores(&pair.typo);
            let own = scores[pair.word];
            scores.iter().enumerate().filter(|&(word, &score)| score > own || score == own && word < pair.word).count()
        })
        .collect();
    [1, 10].map(|k| ranks.iter().filter(|&&rank| rank < k).count() as f64 / sample.len().max(1) as f64)
}

fn counts(word: &str) -> HashMap<String, f64> {
    let bounded: Vec<char> = [&['^'][..], &word.chars().collect::<Vec<_>>(), &['$']].concat();
    let mut counts = HashMap::new();
    for n in [2, 3] {
        bounded.windows(n).for_each(|gram| *counts.entry(gram.iter().collect()).or_default() += 1.0);
    }
    counts
}

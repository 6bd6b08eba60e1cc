//! Words as counts of their character n-grams.

use std::collections::HashMap;

use burn::prelude::*;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// How far apart the characters of a pair may be: `gap 1` is a bigram. Pairs with gaps survive an insertion, or one wrong character.
const FARTHEST: usize = 4;
/// Positions are counted from both ends up to here.
const POSITIONS: usize = 9;

/// Calls back with each n-gram of a word: characters, pairs of characters in their order, and characters at their positions.
pub fn for_each_gram(word: &str, mut found: impl FnMut(Gram)) {
    let letters: Vec<char> = word.chars().collect();
    let bounded: Vec<char> = [&['^'][..], &letters, &['$']].concat();
    for (i, &first) in bounded.iter().enumerate() {
        found(Gram::Letter(first));
        for (gap, &second) in bounded[i + 1..].iter().take(FARTHEST).enumerate() {
            found(Gram::Pair(first, second));
            if gap == 0 {
                found(Gram::Bigram(first, second));
            }
        }
    }
    for (i, &letter) in letters.iter().enumerate() {
        found(Gram::FromStart(i.min(POSITIONS), letter));
        found(Gram::FromEnd((letters.len() - 1 - i).min(POSITIONS), letter));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Gram {
    Letter(char),
    Bigram(char, char),
    Pair(char, char),
    FromStart(usize, char),
    FromEnd(usize, char),
}

/// The n-grams that a model knows.
#[derive(Serialize, Deserialize)]
#[serde(from = "Vec<(Gram, f32)>", into = "Vec<(Gram, f32)>")]
#[derive(Clone)]
pub struct Features {
    grams: Vec<(Gram, f32)>,
    index: HashMap<Gram, usize>,
}

impl From<Vec<(Gram, f32)>> for Features {
    fn from(grams: Vec<(Gram, f32)>) -> Self {
        let index = grams.iter().enumerate().map(|(i, &(gram, _))| (gram, i)).collect();
        Features { grams, index }
    }
}

impl From<Features> for Vec<(Gram, f32)> {
    fn from(features: Features) -> Self {
        features.grams
    }
}

impl Features {
    /// Those of some words, in an order that depends on nothing else.
    pub fn of<'a>(words: impl Iterator<Item = &'a str>) -> Self {
        let mut counts: HashMap<Gram, usize> = HashMap::new();
        let mut total = 0;
        for word in words {
            let mut grams = Vec::new();
            for_each_gram(word, |gram| grams.push(gram));
            grams.sort_unstable();
            grams.dedup();
            grams.into_iter().for_each(|gram| *counts.entry(gram).or_default() += 1);
            total += 1;
        }
        let mut counts: Vec<(Gram, usize)> = counts.into_iter().collect();
        counts.sort_unstable();
        let rarity = |count| ((1 + total) as f32 / (1 + count) as f32).ln();
        counts.into_iter().map(|(gram, count)| (gram, rarity(count))).collect::<Vec<_>>().into()
    }

    /// The logarithm of how rare each is among words.
    pub fn rarity(&self) -> Vec<f32> {
        self.grams.iter().map(|&(_, rarity)| rarity).collect()
    }

    pub fn len(&self) -> usize {
        self.grams.len()
    }

    /// The counts of the n-grams of each word, `(words, features)`.
    pub fn counts<S: AsRef<str> + Sync>(&self, words: &[S], device: &Device) -> Tensor<2> {
        let mut counts = vec![0f32; words.len() * self.len()];
        counts.par_chunks_mut(self.len()).zip(words).for_each(|(counts, word)| {
            for_each_gram(word.as_ref(), |gram| {
                if let Some(&feature) = self.index.get(&gram) {
                    counts[feature] += 1.0;
                }
            });
        });
        Tensor::from_data(TensorData::new(counts, [words.len(), self.len()]), device)
    }
}

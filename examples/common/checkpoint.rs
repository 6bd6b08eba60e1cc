//! Checkpoints: folders that are there whole, or not at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::save_whole;

/// Where the checkpoints of a run are: `checkpoint-1`, `checkpoint-2`, …, of which the last is kept.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Writes a checkpoint under another name, renames it, and only then removes those before.
    pub fn save(&self, epoch: usize, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let before = self.epochs();
        save_whole(&self.of(epoch), |part| {
            // What a killed run left.
            let _ = fs::remove_dir_all(part);
            fs::create_dir(part)?;
            write(part)
        })?;
        self.remove(before.into_iter().filter(|&before| before != epoch))
    }

    /// Reads the last checkpoint.
    pub fn load<T>(&self, read: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let last = self.epochs().into_iter().max();
        let last = last.with_context(|| format!("there is no checkpoint in {} to resume from", self.0.display()))?;
        let folder = self.of(last);
        read(&folder).with_context(|| format!("cannot resume from {}", folder.display()))
    }

    /// Removes the checkpoints of a run: it is complete, or another begins.
    pub fn clear(&self) -> Result<()> {
        self.remove(self.epochs().into_iter())
    }

    fn remove(&self, epochs: impl Iterator<Item = usize>) -> Result<()> {
        for epoch in epochs {
            // Renamed first, so that a run that is killed here leaves no part of one.
            let (folder, part) = (self.of(epoch), self.0.join("checkpoint.removed"));
            let _ = fs::remove_dir_all(&part);
            let remove = || fs::rename(&folder, &part).and_then(|()| fs::remove_dir_all(&part));
            remove().with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        Ok(())
    }

    fn of(&self, epoch: usize) -> PathBuf {
        self.0.join(format!("checkpoint-{epoch}"))
    }

    fn epochs(&self) -> Vec<usize> {
        let number = |name: &Path| name.file_name()?.to_str()?.strip_prefix("checkpoint-")?.parse().ok();
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| number(&entry.path())).collect()
    }
}

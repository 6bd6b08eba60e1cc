//! What a panic of Burn says, in a line.

/// The first line of a panic, and the innermost cause where several are listed. Burn tells of a device without memory where a result is read,
/// as the last of many causes: that comes first here.
pub fn in_a_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let cause = text.rsplit_once("Caused by:\n").and_then(|(_, causes)| causes.lines().next()).map(str::trim);
    match cause {
        Some(cause) if cause.contains("out of device memory") || cause.contains("out-of-memory") => {
            format!("the device has no memory left: {cause}")
        }
        Some(cause) if cause.contains("can't allocate buffer") => format!("more than the device can allocate at once: {cause}"),
        Some(cause) => format!("a panic: {first}: {cause}"),
        None => format!("a panic: {first}"),
    }
}

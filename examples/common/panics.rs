//! What a panic of Burn says, in a line.

/// The first line of a panic, and the innermost cause where several are listed. A device without memory left is named first: Burn tells of
/// it where a result is read, as the last of many causes.
pub fn in_a_line(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    let cause = text.rsplit_once("Caused by:\n").and_then(|(_, causes)| causes.lines().next()).map(str::trim);
    match cause {
        Some(cause) if cause.contains("allocate") => format!("the device has no memory left: {cause}"),
        Some(cause) => format!("a panic: {first}: {cause}"),
        None => format!("a panic: {first}"),
    }
}

//! Our lines in somebody else's file: put between markers, replaced in place, taken out again
//! so that every other byte is as it was.

use anyhow::bail;

const BEGIN: &str = "# interceptor begin";
const END: &str = "# interceptor end";
/// Stands in the opening marker when the file before us did not end in a newline.
const JOINED: &str = "# interceptor begin (the line before had no end)";

/// Where a block goes: first where the first match counts, last where the last does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Before everything.
    Top,
    /// After everything.
    Bottom,
}

/// The file with our block holding `lines`; an older block of ours is replaced.
pub fn put(file: &str, lines: &str, place: Place) -> anyhow::Result<String> {
    let rest = take_out(file)?;
    let lines = lines.trim_end_matches('\n');
    Ok(match place {
        Place::Top => format!("{BEGIN}\n{lines}\n{END}\n{rest}"),
        Place::Bottom if rest.is_empty() || rest.ends_with('\n') => {
            format!("{rest}{BEGIN}\n{lines}\n{END}\n")
        }
        Place::Bottom => format!("{rest}\n{JOINED}\n{lines}\n{END}\n"),
    })
}

/// The file without our block; unchanged where there is none.
pub fn take_out(file: &str) -> anyhow::Result<String> {
    let Some((start, end)) = find(file)? else { return Ok(file.to_owned()) };
    let mut before = &file[..start];
    if file[start..].starts_with(JOINED) {
        before = before.strip_suffix('\n').unwrap_or(before);
    }
    Ok(format!("{before}{}", &file[end..]))
}

/// The lines of our block, if there is one.
pub fn lines(file: &str) -> anyhow::Result<Option<&str>> {
    Ok(find(file)?.map(|(start, end)| &file[start..end]))
}

/// Byte range of the block, markers and last newline included.
fn find(file: &str) -> anyhow::Result<Option<(usize, usize)>> {
    let (mut at, mut start, mut found) = (0, None, None);
    for line in file.split_inclusive('\n') {
        let text = line.trim_end();
        match (text, start) {
            (BEGIN | JOINED, None) if found.is_none() => start = Some(at),
            (END, Some(begun)) => {
                found = Some((begun, at + line.len()));
                start = None;
            }
            (BEGIN | JOINED | END, _) => {
                bail!("its interceptor markers do not pair: mend or remove them by hand")
            }
            _ => {}
        }
        at += line.len();
    }
    if start.is_some() {
        bail!("{BEGIN:?} has no {END:?}: mend or remove the markers by hand");
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taking_out_restores_every_byte() {
        for file in ["", "a\n", "a", "\n\n", "a\r\nb\r\n", "# x\n\ta  # y", "é\n"] {
            for place in [Place::Top, Place::Bottom] {
                let once = put(file, "one\ntwo\n", place).unwrap();
                assert_eq!(take_out(&once).unwrap(), file, "{place:?}");
                assert_eq!(put(&once, "one\ntwo", place).unwrap(), once, "twice is once");
                let other = put(&once, "three", place).unwrap();
                assert!(!other.contains("two"));
                assert_eq!(take_out(&other).unwrap(), file);
            }
        }
    }

    #[test]
    fn what_others_wrote_around_the_block_stays() {
        let once = put("a\n", "x", Place::Top).unwrap();
        assert_eq!(take_out(&format!("new\n{once}last\n")).unwrap(), "new\na\nlast\n");
    }

    #[test]
    fn broken_markers_are_not_guessed_at() {
        for file in [
            "# interceptor begin\nx\n",
            "x\n# interceptor end\n",
            "# interceptor begin\n# interceptor begin\n# interceptor end\n",
            "# interceptor begin\n# interceptor end\n# interceptor begin\n# interceptor end\n",
        ] {
            assert!(put(file, "y", Place::Top).is_err(), "{file:?}");
        }
    }
}

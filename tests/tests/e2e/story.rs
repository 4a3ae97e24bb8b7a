//! The demo's story, told to nobody.

use anyhow::Result;
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::story::{Teller, tell};

#[test]
fn the_demo_goes_as_promised() -> Result<()> {
    skip_unless_ssh!();
    let mut bed = Bed::with(Spec::both())?;
    let mut told = Vec::new();
    let (failed, _central) = tell(&mut bed, &mut Teller::new(&mut told, false))?;
    assert_eq!(failed, 0, "{}\n{}", String::from_utf8_lossy(&told), bed.interceptor()?.log());
    Ok(())
}

//! The terminal: an alternate screen without line editing, put back however the program ends.
use super::page::{Line, Tone};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};

/// Alternate screen, no cursor, no wrapping at the right edge.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// How the terminal was, for whoever puts it back: a panic ends the process before anything is dropped.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// What was pressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Key {
    /// `q`, `Q` or end of input by Ctrl-D.
    Quit,
    /// Anything else.
    Other,
}

/// The terminal while it shows pages.
pub struct Screen {
    keys: Receiver<Key>,
    /// What stands there now.
    shown: String,
}

impl Screen {
    /// Takes the terminal over.
    pub fn open() -> io::Result<Self> {
        let (pressed, keys) = channel();
        if isatty(io::stdin()) {
            let before = tcgetattr(io::stdin())?;
            let mut quiet = before.clone();
            // Keys come at once and unseen. Signals stay as they are, but for the stop by Ctrl-Z, which would leave the screen behind.
            quiet.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            quiet.special_codes[SpecialCodeIndex::VSUSP] = 0;
            tcsetattr(io::stdin(), OptionalActions::Now, &quiet)?;
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            // Ends with the process; a read of the terminal cannot be called off.
            std::thread::Builder::new().name("keys".to_owned()).spawn(move || {
                for byte in io::stdin().lock().bytes().map_while(Result::ok) {
                    let key = if matches!(byte, b'q' | b'Q' | 4) { Key::Quit } else { Key::Other };
                    if pressed.send(key).is_err() {
                        return;
                    }
                }
            })?;
        }
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            hook(panic);
        }));
        let mut out = io::stdout().lock();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Self { keys, shown: String::new() })
    }

    /// Columns and rows; 80 x 24 where the terminal does not say.
    pub fn size(&self) -> (usize, usize) {
        match tcgetwinsize(io::stdout()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
            _ => (super::page::WIDTH, super::page::HEIGHT),
        }
    }

    /// The next key that was pressed, if any.
    pub fn key(&self) -> Option<Key> {
        self.keys.try_recv().ok()
    }

    /// Shows a page, in one write, unless it stands there already.
    pub fn draw(&mut self, lines: &[Line]) -> io::Result<()> {
        let frame = frame(lines);
        if frame == self.shown {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        self.shown = frame;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Lines over the old ones, without clearing in between, so that nothing flickers.
fn frame(lines: &[Line]) -> String {
    let mut text = String::from("\x1b[H");
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            text.push_str("\r\n");
        }
        let code = match line.tone {
            Tone::Plain => "",
            Tone::Head => "\x1b[1m",
            Tone::Soft => "\x1b[2m",
            Tone::Good => "\x1b[32m",
            Tone::Warn => "\x1b[33m",
            Tone::Bad => "\x1b[1;31m",
        };
        text.push_str(code);
        text.push_str(&line.text);
        text.push_str(if code.is_empty() { "\x1b[K" } else { "\x1b[0m\x1b[K" });
    }
    text.push_str("\x1b[J");
    text
}

/// Puts the terminal back. Failures are of no use to anybody here.
fn restore() {
    let mut out = io::stdout();
    let _ = out.write_all(LEAVE.as_bytes());
    let _ = out.flush();
    if let Ok(mut before) = BEFORE.try_lock()
        && let Some(before) = before.take()
    {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_drawn_over_the_old_one_and_clears_what_is_left_of_it() {
        let lines = [Line::new("one", Tone::Plain), Line::new("two", Tone::Bad)];
        assert_eq!(frame(&lines), "\x1b[Hone\x1b[K\r\n\x1b[1;31mtwo\x1b[0m\x1b[K\x1b[J");
    }
}

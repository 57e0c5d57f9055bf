//! Programs that know tokens or who is let in, in any language: they answer questions, one JSON object per line.

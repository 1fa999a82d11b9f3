"""The rehearsal of a global year: only what a block holds is made up; tiles, graph, records and verbs are real."""

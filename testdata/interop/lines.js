// What both peers share with the test that starts them, and nothing of ISO 8583: JSON, one object a line, commands on standard input and
// events on standard output; and messages cut out of a stream by two bytes of length. A peer ends by itself when its standard input
// does, so it cannot outlive the test.
'use strict';

const readline = require('node:readline');

// tell prints an event. What a library says badly is an event too, which fails the test.
function tell(event) {
  process.stdout.write(JSON.stringify(event) + '\n');
}

// guarded runs what a library does to bytes or commands from outside.
function guarded(what, act) {
  try {
    act();
  } catch (error) {
    tell({ event: 'fault', text: `${what}: ${error.message}` });
  }
}

// commands calls act with each line of standard input, and end after the last.
function commands(act, end) {
  const lines = readline.createInterface({ input: process.stdin });
  lines.on('line', (line) => guarded('command', () => act(JSON.parse(line))));
  lines.on('close', end);
}

// frames calls act with each frame that arrives on a socket: two bytes, high byte first, that count what follows, and that.
function frames(socket, act) {
  let rest = Buffer.alloc(0);
  socket.on('data', (chunk) => {
    rest = Buffer.concat([rest, chunk]);
    while (rest.length >= 2 && rest.length >= 2 + rest.readUInt16BE(0)) {
      const frame = rest.subarray(0, 2 + rest.readUInt16BE(0));
      rest = rest.subarray(frame.length);
      guarded('frame', () => act(frame));
    }
  });
  socket.on('error', (error) => tell({ event: 'fault', text: `socket: ${error.code}` }));
}

module.exports = { tell, commands, frames };

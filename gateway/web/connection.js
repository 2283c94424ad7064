// The websocket, kept open: connects, notices silence, reconnects with growing pauses.
// Invariant: at most one socket at a time; a frame of an old socket is never delivered. The
// socket's constructor, the clock and the timers come in from outside.

export const PAUSES_MS = [500, 1_000, 2_000, 5_000, 10_000];
export const SILENCE_MS = 15_000; // three of the server's heartbeats

/** `onState(state, detail)`: connecting | open | waiting. */
export class Connection {
  constructor({ url, makeSocket, timers, onState, onMessage }) {
    this.url = url;
    this.makeSocket = makeSocket;
    this.timers = timers;
    this.onState = onState;
    this.onMessage = onMessage;
    this.socket = null;
    this.failures = 0;
    this.silence = null;
  }

  open() {
    this.onState("connecting", "");
    const socket = this.makeSocket(this.url);
    this.socket = socket;
    socket.onopen = () => this.#if(socket, () => this.onState("open", ""));
    socket.onmessage = (event) => this.#if(socket, () => this.#message(event.data));
    socket.onclose = (event) => this.#if(socket, () => this.#closed(event.reason || ""));
    this.#listen();
  }

  send(body) {
    if (this.socket?.readyState === 1) this.socket.send(JSON.stringify(body));
  }

  /** Drop the connection now and connect again after a pause. */
  restart(reason) {
    const { socket } = this;
    if (socket === null) return;
    this.#closed(reason);
    socket.close();
  }

  #if(socket, act) {
    if (socket === this.socket) act();
  }

  #message(data) {
    this.#listen();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      this.restart("the server sent a broken frame");
      return;
    }
    if (message.t === "hello") this.failures = 0;
    this.onMessage(message);
  }

  #listen() {
    this.timers.clear(this.silence);
    this.silence = this.timers.set(() => this.restart("the server went silent"), SILENCE_MS);
  }

  #closed(reason) {
    this.socket = null;
    this.timers.clear(this.silence);
    const pause = PAUSES_MS[Math.min(this.failures, PAUSES_MS.length - 1)];
    this.failures += 1;
    this.onState("waiting", reason);
    this.timers.set(() => this.open(), pause);
  }
}

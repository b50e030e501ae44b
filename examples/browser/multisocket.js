/* A small client of multisocket for browsers (and for node, where the global WebSocket exists).
 *
 * Each message is one binary frame of a WebSocket with the subprotocol multisocket.binary:
 *
 *   flags u8 | ttl u8 | hops u8 | distance u8 | length u32 BE | source 4*hops | destination 4*distance | content
 *
 * A path is a row of pipe ids (u32 BE), nearest first. Whoever receives a message puts the id of the pipe that it came by
 * in front of its source, and takes the first id of its destination away. So a reply goes to the source of its request. */

export const TO_ONE = 0;
export const TO_ALL = 1;
export const TO_DESTINATION = 2;
export const NO_SOURCE = 8;

const META_SIZE = 8;
const TTL = 16;

const bytesOf = (content) =>
  typeof content === "string" ? new TextEncoder().encode(content) : new Uint8Array(content);

/** The bytes of a message. content: a string, or bytes. */
export function encode({ content = "", flags = TO_ONE, ttl = TTL, source = [], destination = [] }) {
  const body = bytesOf(content);
  const ids = [...source, ...destination];
  const out = new Uint8Array(META_SIZE + 4 * ids.length + body.length);
  const view = new DataView(out.buffer);
  out.set([flags, ttl, source.length, destination.length]);
  view.setUint32(4, body.length);
  ids.forEach((id, i) => view.setUint32(META_SIZE + 4 * i, id));
  out.set(body, META_SIZE + 4 * ids.length);
  return out;
}

/** The message in some bytes, as it stands on the wire. Throws a RangeError when they are too few, or too many. */
export function decode(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [flags, ttl, hops, distance] = [0, 1, 2, 3].map((i) => view.getUint8(i));
  const start = META_SIZE + 4 * (hops + distance);
  if (bytes.length !== start + view.getUint32(4)) throw new RangeError("the frame is not one message");
  const ids = Array.from({ length: hops + distance }, (_, i) => view.getUint32(META_SIZE + 4 * i));
  return { flags, ttl, source: ids.slice(0, hops), destination: ids.slice(hops), content: bytes.slice(start) };
}

/** One connection to a Socket, which is made again when it is lost.
 *
 * onmessage(message): content is a Uint8Array; text(message) gives a string; reply(message, content) answers.
 * onopen(), onclose(): the connection is there, or lost. */
export class Socket {
  static PIPE = 1; // what we call our only pipe

  constructor(url, { minReconnectTime = 0.1, maxReconnectTime = 8 } = {}) {
    Object.assign(this, { url, minReconnectTime, maxReconnectTime, wait: minReconnectTime, closed: false });
    this.onmessage = this.onopen = this.onclose = () => {};
    this.#connect();
  }

  #connect() {
    this.ws = new WebSocket(this.url, "multisocket.binary");
    this.ws.binaryType = "arraybuffer";
    this.ws.onopen = () => {
      this.wait = this.minReconnectTime;
      this.onopen();
    };
    this.ws.onmessage = ({ data }) => this.#received(decode(new Uint8Array(data)));
    this.ws.onclose = () => {
      this.onclose();
      if (this.closed) return;
      setTimeout(() => this.#connect(), 1000 * this.wait);
      this.wait = Math.min(this.maxReconnectTime, this.wait * (1.1 + 0.4 * Math.random()));
    };
  }

  #received(message) {
    if (message.ttl === 0) return;
    const source = message.flags & NO_SOURCE ? message.source : [Socket.PIPE, ...message.source];
    this.onmessage({ ...message, ttl: message.ttl - 1, source, destination: message.destination.slice(1) });
  }

  get connected() {
    return this.ws.readyState === WebSocket.OPEN;
  }

  /** Sends to the peer. Throws when it is not connected. */
  send(content) {
    this.ws.send(encode({ content }));
  }

  /** Sends along a path, as a message's source gives it. */
  sendTo(path, content) {
    this.ws.send(encode({ content, flags: TO_DESTINATION, destination: path }));
  }

  reply(message, content) {
    this.sendTo(message.source, content);
  }

  text(message) {
    return new TextDecoder().decode(message.content);
  }

  close() {
    this.closed = true;
    this.ws.close();
  }
}

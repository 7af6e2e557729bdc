// The blocks of data: base64 of gzipped JSON. Those with rollouts are decoded when they are needed.

const decoded = new Map();

async function decode(id) {
  const text = document.getElementById(id).textContent;
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function chunk(number) {
  if (!decoded.has(number)) decoded.set(number, decode(`chunk-${number}`));
  return decoded.get(number);
}

// The rollouts of a group.
async function groupOf(index, number) {
  const [, , , , block, place] = index.groups[number];
  return (await chunk(block))[place];
}

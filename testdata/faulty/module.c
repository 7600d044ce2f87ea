// A PKCS#11 module with faults for tests: it stands before a real one and does what a control file says.
//
// FAULTY_MODULE names the real module, FAULTY_CONTROL a file of two numbers of 32 bits in the machine's order, which is mapped: the first says
// what to do, the second counts the calls that met it.
//
//	0  the real module answers
//	1  the sessions are gone: CKR_SESSION_HANDLE_INVALID
//	2  the device is broken: CKR_DEVICE_ERROR
//	3  the token is not there: CKR_TOKEN_NOT_PRESENT, and no slot has one
//	4  calls hang until the number changes
//
// Numbers and the order of the table are of PKCS#11 v2.40. Calls of a new session and of the data path meet the fault.
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*three)(word, word, word);
typedef word (*five)(word, word, word, word, word);

struct table { word version; void *calls[68]; };

enum {
	get_slot_list = 4, open_session = 12, find_init = 26,
	encrypt_init = 29, encrypt = 30, encrypt_update = 31, decrypt_init = 33, decrypt = 34, decrypt_update = 35,
};

static struct table real, faulty;
static volatile uint32_t *control;

// meet returns what a call answers instead of the real module, 0 for nothing.
static word meet(void) {
	if (control[0] == 0) return 0;
	__atomic_fetch_add(&control[1], 1, __ATOMIC_RELAXED);
	while (control[0] == 4) usleep(1000);
	switch (control[0]) {
	case 1: return 0xB3;
	case 2: return 0x30;
	case 3: return 0xE0;
	}
	return 0;
}

#define CALL3(name, place) static word name(word a, word b, word c) { \
	word fault = meet(); return fault ? fault : ((three)real.calls[place])(a, b, c); }
#define CALL5(name, place) static word name(word a, word b, word c, word d, word e) { \
	word fault = meet(); return fault ? fault : ((five)real.calls[place])(a, b, c, d, e); }

CALL5(do_open_session, open_session)
CALL3(do_find_init, find_init)
CALL3(do_encrypt_init, encrypt_init)
CALL5(do_encrypt, encrypt)
CALL5(do_encrypt_update, encrypt_update)
CALL3(do_decrypt_init, decrypt_init)
CALL5(do_decrypt, decrypt)
CALL5(do_decrypt_update, decrypt_update)

static word do_get_slot_list(word present, word list, word count) {
	if (control[0] == 3) { *(word *)count = 0; return 0; }
	return ((three)real.calls[get_slot_list])(present, list, count);
}

word C_GetFunctionList(struct table **list) {
	static int loaded;
	if (!loaded) {
		const char *path = getenv("FAULTY_MODULE"), *file = getenv("FAULTY_CONTROL");
		void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
		word (*get)(struct table **) = module ? (word (*)(struct table **))dlsym(module, "C_GetFunctionList") : NULL;
		struct table *of = NULL;
		int fd = file ? open(file, O_RDWR) : -1;
		if (get == NULL || get(&of) != 0 || fd < 0) return 5;
		void *mapped = mmap(NULL, 2 * sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		close(fd);
		if (mapped == MAP_FAILED) return 5;
		control = mapped;
		memcpy(&real, of, sizeof real);
		faulty = real;
		faulty.calls[get_slot_list] = do_get_slot_list;
		faulty.calls[open_session] = do_open_session;
		faulty.calls[find_init] = do_find_init;
		faulty.calls[encrypt_init] = do_encrypt_init;
		faulty.calls[encrypt] = do_encrypt;
		faulty.calls[encrypt_update] = do_encrypt_update;
		faulty.calls[decrypt_init] = do_decrypt_init;
		faulty.calls[decrypt] = do_decrypt;
		faulty.calls[decrypt_update] = do_decrypt_update;
		loaded = 1;
	}
	*list = &faulty;
	return 0;
}
